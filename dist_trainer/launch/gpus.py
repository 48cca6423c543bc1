"""The memory of this host's GPUs, by NVML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LocalGpu:
    name: str
    num_bytes: int


def smallest_visible_gpu(environ: Mapping[str, str]) -> LocalGpu | None:
    """The one with the least memory of those that a rank started here would see; None where that is not known."""
    from dist_trainer.monitor.devices import DeviceIdentity, find_device, list_gpus
    from dist_trainer.monitor.nvml import Nvml, NvmlError
    from dist_trainer.monitor.visible import visible_devices

    def say(trouble: object) -> None:
        """What NVML cannot tell is not known: no failure."""

    try:
        nvml = Nvml(say)
    except NvmlError:
        return None
    try:
        visible = visible_devices(list_gpus(nvml, say), environ)
        if visible.problem is not None:
            return None
        found = []
        for device in visible.devices:
            handle = find_device(nvml, DeviceIdentity(device.uuid)).handle
            found.append(LocalGpu(device.name, int(nvml.ask("nvmlDeviceGetMemoryInfo", handle).total)))
    except NvmlError:
        return None
    finally:
        nvml.close()
    return min(found, key=lambda gpu: gpu.num_bytes, default=None)
