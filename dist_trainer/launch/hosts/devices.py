"""What this host's devices have, and are assumed to support, found without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from dist_trainer.config.adapt import ANY_DEVICE, DeviceFacts, adapt, offloads_to_nvme
from dist_trainer.errors import UserError

if TYPE_CHECKING:
    from dist_trainer.config.resolve import ResolvedRun

# EXIT_MISSING of dist_trainer.train.async_io, which `launch` must not import.
_EXIT_MISSING = 3
_ASK_LIMIT_S = 300


@dataclass(frozen=True)
class LocalGpu:
    name: str
    num_bytes: int


def smallest_visible_gpu(environ: Mapping[str, str]) -> LocalGpu | None:
    """Of the GPUs that a rank started here would see, the one with the least memory; None if that is not known."""
    from dist_trainer.monitor.gpu.devices import DeviceIdentity, find_device, list_gpus
    from dist_trainer.monitor.gpu.nvml import Nvml, NvmlError
    from dist_trainer.monitor.gpu.visible import visible_devices

    def say(trouble: object) -> None:
        """Drops NVML's diagnostics: a figure that it cannot give is unknown, and no failure."""

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


def host_memory_bytes() -> int:
    """The total memory of this host."""
    import psutil

    return int(psutil.virtual_memory().total)


def check_async_io(resolved: ResolvedRun) -> None:
    """Raises UserError for a run that offloads to NVMe on this host if DeepSpeed cannot do that here.

    DeepSpeed is asked in a separate process. If that fails to answer, nothing is raised, and the ranks will find out.
    """
    if offloads_to_nvme(resolved.deepspeed) is None:
        return
    command = [sys.executable, "-m", "dist_trainer.train.async_io"]
    try:
        status = subprocess.run(command, capture_output=True, timeout=_ASK_LIMIT_S, check=False).returncode
    except subprocess.TimeoutExpired:
        return
    if status == _EXIT_MISSING:
        try:
            adapt(resolved.deepspeed, replace(ANY_DEVICE, has_async_io=False))
        except UserError as error:
            error.where = resolved.deepspeed_source
            raise


def assumed_facts(kind: Literal["cpu", "cuda"]) -> DeviceFacts:
    """What a device of this kind is assumed to support; the ranks ask their real device, and say what it lacks.

    A CPU counts as without fp16, which only some have; others run bf16, which takes as many bytes.
    """
    if kind == "cuda":
        return ANY_DEVICE
    has_compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))
    return DeviceFacts(kind="cpu", supports_bf16=True, supports_fp16=True, has_compiler=has_compiler, name="CPU")
