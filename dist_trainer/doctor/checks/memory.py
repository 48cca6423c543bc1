"""The plan against the memory of the hosts and of their GPUs, in total and as far as it is free now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dist_trainer.doctor.examination import Examination, HostReport
from dist_trainer.doctor.facts import Device, MemoryFacts
from dist_trainer.doctor.findings import Finding, all_well, grouped
from dist_trainer.memory.advice.outcome import HostMemory, Standing, device_standing, host_standing
from dist_trainer.memory.plan import Figure, Plan, needed
from dist_trainer.units import counted, format_gb

# Python, torch's libraries and threads, which a plan for the CPU does not count (docs/planning.md).
_PROCESS_BYTES = 500_000_000
_DO = "`plan --fit` with the same switches searches for settings that fit"


def check(exam: Examination) -> Iterator[Finding]:
    plan = exam.needs.plan
    if plan is None:
        if exam.needs.refused:
            yield Finding("fail", "plan", f"the run would be refused: {exam.needs.refused}")
        elif exam.needs.plan_problem:
            yield Finding("warn", "plan", f"no plan could be made: {exam.needs.plan_problem}")
        return
    if plan.device == "cuda":
        yield from _on_gpus(exam, plan)
    yield from _on_hosts(exam, plan)


def _on_gpus(exam: Examination, plan: Plan) -> Iterator[Finding]:
    over, close, taken, seen = {}, {}, {}, {}
    for host in exam.hosts:
        gpu = smallest_device(host)
        if gpu is None:
            continue
        assert gpu.total_bytes is not None
        seen[host.name] = gpu.total_bytes
        standing = device_standing(replace(plan, device_bytes=gpu.total_bytes))
        assert standing is not None
        text = f"{_planned(plan, exam)} a GPU, and {gpu.name} has {format_gb(gpu.total_bytes)}"
        free_bytes = _least_free(host)
        if standing.state == "over":
            over[host.name] = text
        elif free_bytes is not None and needed(plan.worst).num_bytes > free_bytes:
            taken[host.name] = f"{_planned(plan, exam)} a GPU, and of one only {format_gb(free_bytes)} are free"
        elif standing.state == "close":
            close[host.name] = f"{text}: it fits, but its band up to {format_gb(standing.needed.high_bytes)} does not"
    yield from grouped("fail", "plan", over, _DO)
    yield from grouped("fail", "plan", taken, "end what holds the rest (see: GPU memory in use)")
    yield from grouped("warn", "plan", close, _DO)
    if not over and not taken and not close:
        text = f"{_planned(plan, exam)} a GPU, of {format_gb(min(seen.values(), default=0))} or more"
        yield from all_well("plan", text, seen, _answering(exam))


def _on_hosts(exam: Examination, plan: Plan) -> Iterator[Finding]:
    """Host memory: on CPUs everything that the ranks hold, with GPUs only what is offloaded."""
    over, low, least = {}, {}, None
    for host in exam.hosts:
        memory = host.facts.memory if host.facts else None
        if memory is None:
            continue
        standing = host_needs(plan, memory, host.num_slots)
        if standing is None:
            continue
        wanted = f"{format_gb(standing.needed.num_bytes)} of the host's memory for {counted(host.num_slots, 'rank')}"
        if standing.state == "over":
            limit = "it may use" if memory.limit_bytes else "it has"
            over[host.name] = f"{wanted}, and {limit} {format_gb(standing.limit_bytes)}"
        elif standing.needed.num_bytes > memory.available_bytes:
            low[host.name] = f"{wanted}, and {format_gb(memory.available_bytes)} are free now"
        least = min(filter(None, (least, standing)), key=lambda one: -one.over_bytes)
    yield from grouped(
        "fail", "host memory", over, _DO if plan.device == "cpu" else "offload less, or start fewer ranks a host"
    )
    yield from grouped("warn", "host memory", low, "end what holds the rest")
    totals = {host.name: host.facts.memory.total_bytes for host in exam.hosts if host.facts and host.facts.memory}
    if not over and not low:
        wants = "nothing is offloaded" if least is None else f"the ranks need {format_gb(least.needed.num_bytes)}"
        text = f"{format_gb(min(totals.values(), default=0))} or more a host; {wants}"
        yield from all_well("host memory", text, totals, _answering(exam))


def _answering(exam: Examination) -> list[str]:
    return [host.name for host in exam.hosts if host.facts]


def host_needs(plan: Plan, memory: MemoryFacts, num_ranks: int) -> Standing | None:
    """What the ranks of one host need of its memory, against what they may use; None if they need nothing."""
    limit_bytes = memory.limit_bytes or memory.total_bytes
    standing = host_standing(plan, HostMemory(limit_bytes, num_ranks))
    if standing is None or plan.device == "cuda":
        return standing
    more = num_ranks * _PROCESS_BYTES
    figure = standing.needed
    return Standing(Figure(figure.num_bytes + more, figure.low_bytes + more, figure.high_bytes + more), limit_bytes)


def smallest_device(host: HostReport) -> Device | None:
    """The device with the least memory among those that the host's slots stand for."""
    return min(_slot_devices(host), key=lambda device: device.total_bytes or 0, default=None)


def _least_free(host: HostReport) -> int | None:
    free = [
        device.total_bytes - device.used_bytes
        for device in _slot_devices(host)
        if device.total_bytes and device.used_bytes is not None
    ]
    return min(free, default=None)


def _slot_devices(host: HostReport) -> list[Device]:
    devices = host.gpus.devices if host.gpus else ()
    return [devices[slot] for slot in host.slots if slot < len(devices) and devices[slot].total_bytes is not None]


def _planned(plan: Plan, exam: Examination) -> str:
    return f"{exam.needs.name} needs {format_gb(needed(plan.worst).num_bytes)}"
