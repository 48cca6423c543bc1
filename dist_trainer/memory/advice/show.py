"""A plan as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dist_trainer.memory.advice.outcome import (
    HostMemory,
    Standing,
    device_standing,
    host_standing,
    reduction,
    target_standing,
)
from dist_trainer.memory.plan import Plan, RankPlan, needed
from dist_trainer.units import GB, counted, format_gb

THOUSANDTH = GB // 1000
LABEL_WIDTH = 24


def render(
    plan: Plan,
    *,
    host: HostMemory | None = None,
    is_pinned: bool = False,
    notices: Sequence[str] = (),
    advice: Sequence[str] = (),
    filled: Sequence[str] = (),
) -> str:
    """The whole plan: the rank that needs most in full, the others in one line each."""
    lines = [
        *_heading(plan),
        "",
        *_rank(plan.worst),
        *_others(plan),
        "",
        *_host(plan, host, is_pinned=is_pinned),
        *_verdict(plan, host),
        *advice,
    ]
    sections = {
        "assumed": plan.assumptions,
        "upper bounds": plan.upper_bounds,
        "not modelled": plan.unmodelled,
        'filled for "auto"': filled,
        "notices": notices,
    }
    for title, entries in sections.items():
        if entries:
            lines += ["", title, *(f"  {entry}" for entry in entries)]
    return "\n".join(lines) + "\n"


def add_up(parts: Mapping[str, int], unit_bytes: int) -> dict[str, int]:
    """The parts in whole units, rounded so that they sum to the rounded total (largest remainder method)."""
    whole = {name: num_bytes // unit_bytes for name, num_bytes in parts.items()}
    missing = round(sum(parts.values()) / unit_bytes) - sum(whole.values())
    for name in sorted(parts, key=lambda name: parts[name] % unit_bytes, reverse=True)[:missing]:
        whole[name] += 1
    return whole


def _heading(plan: Plan) -> Iterator[str]:
    device = plan.device_name or ("a CPU" if plan.device == "cpu" else "a GPU")
    memory = f" of {format_gb(plan.device_bytes)}" if plan.device_bytes else ""
    yield f"{plan.name} with {plan.deepspeed}"
    yield (
        f"{_ranks(plan.world_size)}, each on {device}{memory}: "
        f"micro batch {plan.micro_batch} x accumulation {plan.accumulation}, {plan.sequence_length} tokens a sequence"
    )


def _rank(rank: RankPlan) -> Iterator[str]:
    yield _row(f"rank {rank.rank}", "planned", "expected between")
    figures = {"allocated": rank.allocated, "reserved": rank.reserved, "NVML": rank.device_used}
    if rank.device_used is None:
        del figures["reserved"], figures["NVML"]
    for name, figure in figures.items():
        if figure is not None:
            yield _row(f"  {name}", _gb(figure.num_bytes), f"{_gb(figure.low_bytes)} and {_gb(figure.high_bytes)}")
    yield ""
    yield _row(f"at the peak, in {rank.peak_phase}", "GB", "share")
    total = sum(rank.parts.values())
    thousandths = add_up(rank.parts, THOUSANDTH)
    for name in sorted(rank.parts, key=lambda name: rank.parts[name], reverse=True):
        yield _row(f"  {name}", f"{thousandths[name] / 1000:.3f}", f"{rank.parts[name] / total:6.1%}")
    yield _row("  total", f"{sum(thousandths.values()) / 1000:.3f}", "100.0%")
    yield ""
    yield _row("allocated by phase", "peak", "most of it")
    for phase in rank.phases:
        largest = sorted(phase.parts, key=lambda name: phase.parts[name], reverse=True)[:3]
        made_of = ", ".join(f"{name} {phase.parts[name] / GB:.3f}" for name in largest)
        yield _row(f"  {phase.phase}", _gb(phase.allocated_bytes), made_of)


def _others(plan: Plan) -> Iterator[str]:
    worst = plan.worst
    for rank in plan.ranks:
        if rank.rank != worst.rank:
            yield f"rank {rank.rank}: {_gb(needed(rank).num_bytes)}, peak in {rank.peak_phase}"
    if plan.world_size > len(plan.ranks):
        yield f"{plan.world_size - len(plan.ranks)} more of {plan.world_size} ranks, not planned: --rank N plans one"


def _host(plan: Plan, host: HostMemory | None, *, is_pinned: bool) -> Iterator[str]:
    host_bytes = max(rank.host_bytes for rank in plan.ranks)
    if plan.device == "cuda" and host_bytes:
        pinned = ", in pinned memory, which cannot be swapped out" if is_pinned else ""
        yield f"host memory a rank: {format_gb(host_bytes)}{pinned}"
        if host is None:
            yield "whether a host holds that is not known: say its memory with --host-memory"


def _verdict(plan: Plan, host: HostMemory | None) -> Iterator[str]:
    device, target, on_host, saved = (
        device_standing(plan),
        target_standing(plan),
        host_standing(plan, host),
        reduction(plan),
    )
    if device is not None:
        yield f"device     {_fits(device)}"
    elif plan.device == "cuda":
        yield "device     not judged: its memory is not known (--gpu NAME or --gpu-memory SIZE)"
    if on_host is not None and host is not None:
        yield f"host       {_fits(on_host)}, with {_ranks(host.num_ranks)} on it"
    if target is not None:
        yield f"target     {_meets(target)}"
    elif plan.target_bytes is not None:
        yield "target     not judged: it is for a GPU"
    if saved is not None and plan.baseline_bytes:
        less = f"{saved:.1%} less" if saved >= 0 else f"{-saved:.1%} more"
        yield f"reduction  {less} than the baseline's {format_gb(plan.baseline_bytes)}"


def _fits(standing: Standing) -> str:
    needs, has = format_gb(standing.needed.num_bytes), format_gb(standing.limit_bytes)
    if standing.state == "over":
        return f"does not fit: {needs} of {has}, {format_gb(standing.over_bytes)} too much"
    if standing.state == "close":
        return f"fits, but not by the band's upper end: {needs} of {has}, up to {format_gb(standing.needed.high_bytes)}"
    return f"fits: {needs} of {has}"


def _meets(standing: Standing) -> str:
    needs, limit = format_gb(standing.needed.num_bytes), format_gb(standing.limit_bytes)
    if standing.state == "over":
        return f"missed by {format_gb(standing.over_bytes)}: {needs}, where {limit} is the target"
    band = f", but the band reaches {format_gb(standing.needed.high_bytes)}" if standing.state == "close" else ""
    return f"met: {needs} of {limit}{band}"


def _ranks(count: int) -> str:
    return counted(count, "rank")


def _row(label: str, figure: str, rest: str) -> str:
    return f"{label:<{LABEL_WIDTH}}{figure:>12}  {rest}".rstrip()


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / GB:.3f} GB"
