"""The GPUs of every host: how many, in what state, whose memory they hold, and whether NVML contradicts others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from dist_trainer.doctor.examination import Examination, HostReport
from dist_trainer.doctor.facts import GpuFacts, HostGpus
from dist_trainer.doctor.findings import Finding, Level, all_well, grouped
from dist_trainer.errors import UserError
from dist_trainer.launch.hosts.placement import SLOTS_HINT
from dist_trainer.memory.gpus import find_gpu
from dist_trainer.monitor.gpu.pci import kernel_address
from dist_trainer.units import counted, format_gb

# Less memory in use than this is the driver's or a desktop's.
_NOTICED_BYTES = 2**29
# Without gpu_idle, and without the power cap, which is normal under load.
_SLOWDOWNS = {
    "hw_slowdown": "the hardware slows it down",
    "hw_thermal_slowdown": "it is too hot",
    "hw_power_brake_slowdown": "its power supply holds it back",
    "sw_thermal_slowdown": "it is too hot",
}
_MEMORY_TOLERANCE = 0.1
_NO_GPU = "none: ranks run on the CPU"
_TRY = "run nvidia-smi there; where it fails too, install or load the driver again, or reboot"


def check(exam: Examination) -> Iterator[Finding]:
    asked = {host.name: host for host in exam.hosts if host.gpus is not None}
    yield from _broken(asked)
    if exam.device == "cpu":
        hidden = {
            name: f"{len(_gpus(host).gpus)}, of which a program sees none"
            for name, host in asked.items()
            if _gpus(host).gpus
        }
        yield from grouped("warn", "GPUs", hidden, "unset CUDA_VISIBLE_DEVICES there to use them")
        if not hidden and not any(_gpus(host).kernel for host in asked.values()):
            none = [
                name for name, host in asked.items() if _gpus(host).kernel is not None or not _gpus(host).has_library
            ]
            yield from all_well("GPUs", _NO_GPU, none, asked)
        return
    yield from _counts(asked, exam)
    yield from _kinds(asked)
    yield from _contradictions(asked, exam)
    yield from _states(asked)


def _broken(asked: Mapping[str, HostReport]) -> Iterator[Finding]:
    """GPUs on the PCI bus that NVML does not list."""
    silent, unsure = {}, {}
    for name, host in asked.items():
        gpus = _gpus(host)
        if gpus.trouble is not None and gpus.kernel:
            count = len(gpus.kernel)
            silent[name] = (
                f"the kernel shows {'a GPU' if count == 1 else f'{count} GPUs'}, and NVML says: {gpus.trouble}"
            )
        elif gpus.devices_problem is not None:
            unsure[name] = gpus.devices_problem
    yield from grouped("fail", "GPUs", silent, _TRY)
    yield from grouped("warn", "GPUs", unsure, "set CUDA_DEVICE_ORDER=PCI_BUS_ID")
    troubles = {name: "; ".join(_gpus(host).troubles) for name, host in asked.items() if _gpus(host).troubles}
    yield from grouped("warn", "NVML", troubles, _TRY)


def _counts(asked: Mapping[str, HostReport], exam: Examination) -> Iterator[Finding]:
    """Compares GPUs with slots as `launch` does: slots default to the host's GPUs, and a user may name a part of them.
    A SLURM job may leave some GPUs idle.
    """
    short: dict[str, str] = {}
    spare: dict[str, str] = {}
    enough: dict[str, str] = {}
    for name, host in asked.items():
        count = len(_gpus(host).devices)
        slots = counted(host.num_slots, "slot")
        text = f"{count} for {slots}"
        # A slot is the number of a GPU, so what counts is whether the highest one exists.
        is_spare = count > host.num_slots and not exam.names_slots
        (short if count <= max(host.slots) else spare if is_spare else enough)[name] = text
    yield from grouped("fail", "GPUs", short, "correct slots= in the hostfile, or CUDA_VISIBLE_DEVICES there")
    if exam.how == "srun":
        yield from grouped("warn", "GPUs", spare, "ask for as many tasks as GPUs to use them all")
    else:
        yield from grouped("fail", "GPUs", spare, SLOTS_HINT)
    if not short and not spare:
        yield Finding("ok", "GPUs", " or ".join(dict.fromkeys(enough.values())))


def _kinds(asked: Mapping[str, HostReport]) -> Iterator[Finding]:
    names = Counter(device.name for host in asked.values() for device in _gpus(host).devices)
    if len(names) == 1:
        yield Finding("ok", "GPU model", next(iter(names)))
        return
    common = names.most_common(1)[0][0]
    odd = {
        name: ", ".join(sorted({device.name for device in _gpus(host).devices} - {common}))
        for name, host in asked.items()
        if any(device.name != common for device in _gpus(host).devices)
    }
    text = {name: f"{kinds}, where most are {common}: the slowest sets the pace" for name, kinds in odd.items()}
    yield from grouped("warn", "GPU model", text, "leave the odd ones out with --exclude")


def _contradictions(asked: Mapping[str, HostReport], exam: Examination) -> Iterator[Finding]:
    """Where NVML contradicts the kernel, CUDA, the card's name, or itself."""
    lies: dict[str, list[str]] = {name: [] for name in asked}
    owners: dict[str, list[str]] = {}
    for name, host in asked.items():
        gpus = _gpus(host)
        lies[name] += _about_itself(gpus)
        for gpu in gpus.gpus:
            owners.setdefault(gpu.uuid, []).append(name)
            if gpus.kernel is not None and kernel_address(gpu.pci_bus_id) not in gpus.kernel:
                lies[name].append(f"it names GPU {gpu.index} at {gpu.pci_bus_id}, where the kernel shows none")
        lies[name] += _about_cuda(host)
    for uuid, names in owners.items():
        if len(names) > 1:
            others = ", ".join(dict.fromkeys(names[1:]))
            lies[names[0]].append(f"{uuid} is there more than once ({names[0]}, {others})")
    text = {
        name: "the driver's library contradicts what is there: " + "; ".join(found)
        for name, found in lies.items()
        if found
    }
    yield from grouped(
        "fail", "driver's word", text, "find out which libnvidia-ml.so.1 is loaded there (LD_LIBRARY_PATH)"
    )
    named = {name: odd for name, host in asked.items() if (odd := _about_names(_gpus(host)))}
    yield from grouped("warn", "driver's word", named, "compare with nvidia-smi there")
    if not text and not named:
        yield from _confirmed([_gpus(host) for host in asked.values()])


def _confirmed(hosts: list[HostGpus]) -> Iterator[Finding]:
    """Which sources NVML was compared with, and which were not available."""
    gpus = [gpu for host in hosts for gpu in host.gpus]
    against = {
        "the kernel": all(host.kernel is not None for host in hosts),
        "the cards' names": all(gpu.total_bytes and _nominal_bytes(gpu) for gpu in gpus),
    }
    for level, verb, is_so in (("ok", "agrees with", True), ("skip", "not compared with", False)):
        names = [name for name, is_known in against.items() if is_known is is_so]
        if names:
            yield Finding(level, "driver's word", f"{verb} {' and with '.join(names)}")  # type: ignore[arg-type]


def _about_itself(gpus: HostGpus) -> Iterator[str]:
    if gpus.num_said != len(gpus.gpus):
        yield f"it says {counted(gpus.num_said, 'GPU')} and answers for {len(gpus.gpus)}"
    addresses = Counter(gpu.pci_bus_id for gpu in gpus.gpus)
    for address, count in addresses.items():
        if count > 1:
            yield f"it names {counted(count, 'GPU')} at {address}"
    for gpu in gpus.gpus:
        if gpu.used_bytes is not None and gpu.total_bytes is not None and gpu.used_bytes > gpu.total_bytes:
            yield f"of {format_gb(gpu.total_bytes)} of GPU {gpu.index} it says {format_gb(gpu.used_bytes)} are used"


def _about_cuda(host: HostReport) -> Iterator[str]:
    """NVML against CUDA, which told the trial's ranks how much memory their GPUs have."""
    devices = _gpus(host).devices
    for rank, slot in zip(host.ranks.ranks if host.ranks else (), host.slots, strict=False):
        said = devices[slot].total_bytes if slot < len(devices) else None
        if rank.device_bytes and said and abs(said - rank.device_bytes) > _MEMORY_TOLERANCE * rank.device_bytes:
            yield f"it says {format_gb(said)} for GPU {slot}, and CUDA {format_gb(rank.device_bytes)}"


def _about_names(gpus: HostGpus) -> str:
    """NVML against the memory that a card of this name has, if the name is known."""
    odd = []
    for gpu in gpus.gpus:
        nominal_bytes = _nominal_bytes(gpu)
        if nominal_bytes is None:
            continue
        if gpu.total_bytes and abs(gpu.total_bytes - nominal_bytes) > _MEMORY_TOLERANCE * nominal_bytes:
            odd.append(
                f"GPU {gpu.index} is named {gpu.name}, which has {format_gb(nominal_bytes)}, "
                f"and is said to have {format_gb(gpu.total_bytes)}"
            )
    return "; ".join(odd)


def _nominal_bytes(gpu: GpuFacts) -> int | None:
    try:
        return find_gpu(gpu.name).num_bytes
    except UserError:
        return None


def _states(asked: Mapping[str, HostReport]) -> Iterator[Finding]:
    clean: list[str] = []
    untold: list[str] = []
    every = [gpu for report in asked.values() for gpu in _gpus(report).gpus]
    for level, name, describe, do in _STATES:
        texts = {host: "; ".join(filter(None, map(describe, _gpus(report).gpus))) for host, report in asked.items()}
        found = {host: text for host, text in texts.items() if text}
        yield from grouped(level, f"GPU {name}", found, do)
        is_told = _WORTH_SAYING.get(name)
        if not found and is_told is not None:
            (clean if all(map(is_told, every)) else untold).append(name)
    if clean:
        yield Finding("ok", "GPU state", ", ".join(f"no {name}" for name in clean))
    if untold:
        yield Finding("skip", "GPU state", f"the driver does not tell of every GPU: {', '.join(untold)}")


def _ecc(gpu: GpuFacts) -> str:
    return f"GPU {gpu.index}: {gpu.ecc_errors} uncorrected" if gpu.ecc_errors else ""


def _slowdown(gpu: GpuFacts) -> str:
    reasons = list(dict.fromkeys(_SLOWDOWNS[why] for why in gpu.throttle_reasons or () if why in _SLOWDOWNS))
    if not reasons:
        return ""
    heat = "" if gpu.temperature_c is None else f", {gpu.temperature_c} °C"
    return f"GPU {gpu.index}: {', '.join(reasons)}{heat}"


def _holders(gpu: GpuFacts) -> str:
    listed = [process for process in gpu.processes if (process.used_bytes or 0) >= _NOTICED_BYTES]
    if not listed and (gpu.used_bytes or 0) < 2 * _NOTICED_BYTES:
        return ""
    used = "" if gpu.used_bytes is None else f" {format_gb(gpu.used_bytes)}"
    who = ", ".join(f"{process.name or 'a process'} ({process.pid})" for process in listed or gpu.processes)
    return f"GPU {gpu.index}:{used}{f' by {who}' if who else ', and no process is listed'}"


def _transience(gpu: GpuFacts) -> str:
    return f"off on GPU {gpu.index}" if gpu.is_persistent is False else ""


def _division(gpu: GpuFacts) -> str:
    return f"GPU {gpu.index} is divided into {gpu.num_instances}" if gpu.num_instances else ""


# Whether a state is worth an "ok": only if the driver reports it (consumer cards do not count ECC errors).
_WORTH_SAYING: Mapping[str, Callable[[GpuFacts], bool]] = {
    "ECC errors": lambda gpu: gpu.ecc_errors is not None,
    "throttling": lambda gpu: gpu.throttle_reasons is not None,
    "memory in use": lambda gpu: gpu.used_bytes is not None,
}
_STATES: tuple[tuple[Level, str, Callable[[GpuFacts], str], str], ...] = (
    ("fail", "ECC errors", _ecc, "reset the GPU (nvidia-smi -r); where they come back, have it replaced"),
    ("warn", "throttling", _slowdown, "look at its cooling and power: nvidia-smi -q -d PERFORMANCE"),
    ("warn", "memory in use", _holders, "end those processes, or leave these GPUs out with --exclude"),
    ("warn", "persistence", _transience, "start nvidia-persistenced: an idle GPU takes seconds to come up"),
    ("warn", "MIG", _division, "turn it off for training (nvidia-smi -mig 0): NCCL joins no parts of one GPU"),
)


def _gpus(host: HostReport) -> HostGpus:
    assert host.gpus is not None
    return host.gpus
