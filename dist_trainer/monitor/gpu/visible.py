"""Which GPUs a program sees: CUDA's rules for CUDA_VISIBLE_DEVICES, applied to NVML's list without loading CUDA."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dist_trainer.monitor.gpu.devices import Gpu


@dataclass(frozen=True)
class VisibleDevice:
    """A GPU, or a MIG instance of one."""

    uuid: str
    name: str


@dataclass(frozen=True)
class VisibleDevices:
    """`devices` in CUDA's order if `problem` is None; else every device that may be meant, and `problem` says why."""

    devices: tuple[VisibleDevice, ...]
    problem: str | None = None


def visible_devices(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> VisibleDevices:
    """The devices that CUDA shows to a program with this environment.

    An entry of CUDA_VISIBLE_DEVICES is a number, a UUID or its beginning, or a MIG instance (`MIG-UUID`, or
    `MIG-GPU-UUID/GI/CI` with older drivers). The list ends at the first entry that names no device; if a device is
    named twice, it is empty. Numbers follow CUDA_DEVICE_ORDER: its default, FASTEST_FIRST, is an order that only CUDA
    itself knows, so it is uncertain unless all GPUs are alike.
    """
    text = environ.get("CUDA_VISIBLE_DEVICES")
    order_is_known = environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({gpu.name for gpu in gpus}) <= 1
    everything = tuple(device for gpu in gpus for device in _whole(gpu))
    unordered = "the GPUs of this host differ, and CUDA numbers them by a speed that it alone knows"
    if text is None:
        return VisibleDevices(everything, None if order_is_known or len(gpus) < 2 else unordered)
    entries = _entries(text)
    if entries and _kind(entries[0]) == "number" and not order_is_known:
        numbers = [number for number in map(_number, entries) if number < len(gpus)]
        if not numbers:
            return VisibleDevices(())
        problem = (
            f"{unordered}: CUDA_VISIBLE_DEVICES={text} may mean any of them; CUDA_DEVICE_ORDER=PCI_BUS_ID settles it"
        )
        return VisibleDevices(everything, problem)
    found: list[VisibleDevice] = []
    for entry in entries:
        named = _named(entry, gpus)
        if not named:
            break
        if any(device in found for device in named):
            return VisibleDevices(())
        found += named
    return VisibleDevices(tuple(found))


def _entries(text: str) -> list[str]:
    """The entries before the first one that cannot name a device or is of another kind than the first entry."""
    entries: list[str] = []
    for entry in (part.strip() for part in text.split(",")):
        if _kind(entry) == "none" or (entries and _kind(entry) != _kind(entries[0])):
            break
        entries.append(entry)
    return entries


def _kind(entry: str) -> str:
    for prefix in ("GPU-", "MIG-"):
        if entry.startswith(prefix):
            return prefix
    return "none" if _number(entry) < 0 else "number"


def _number(entry: str) -> int:
    """The entry's leading digits, as C's strtoul reads them; -1 if there are none."""
    match = re.match(r"\+?\d+", entry)
    return int(match.group()) if match else -1


def _named(entry: str, gpus: Sequence[Gpu]) -> list[VisibleDevice]:
    if entry.startswith("MIG-"):
        return _mig_named(entry, gpus)
    if entry.startswith("GPU-"):
        matches = [gpu for gpu in gpus if gpu.uuid.lower().startswith(entry.lower())]
    else:
        matches = [gpu for gpu in gpus if gpu.index == _number(entry)]
    return _whole(matches[0]) if len(matches) == 1 else []


def _mig_named(entry: str, gpus: Sequence[Gpu]) -> list[VisibleDevice]:
    old_form = re.fullmatch(r"MIG-(GPU-[^/]+)/(\d+)/(\d+)", entry)
    matches = []
    for gpu in gpus:
        for instance in gpu.instances:
            if old_form is not None:
                parent, *numbers = old_form.groups()
                is_meant = gpu.uuid.lower() == parent.lower() and numbers == [
                    str(instance.gpu_instance),
                    str(instance.compute_instance),
                ]
            else:
                is_meant = instance.uuid.lower().startswith(entry.lower())
            if is_meant:
                matches.append(VisibleDevice(instance.uuid, gpu.name))
    return matches if len(matches) == 1 else []


def _whole(gpu: Gpu) -> list[VisibleDevice]:
    """The GPU; if it is divided by MIG, all its instances: a program gets one of them, and may choose which."""
    if gpu.instances:
        return [VisibleDevice(instance.uuid, gpu.name) for instance in gpu.instances]
    return [VisibleDevice(gpu.uuid, gpu.name)]
