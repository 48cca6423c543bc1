"""How many bytes this rank holds: torch's allocator, the whole device by NVML, and the process's resident set."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

import psutil
import torch

from dist_trainer.records import MemoryRecord


@dataclass(frozen=True)
class MemoryProbe:
    """Reads one rank's memory. `device` is None where there is no GPU; `nvml_handle` None where NVML has none."""

    rank: int
    device: torch.device | None
    nvml_handle: object | None

    @classmethod
    def open(cls, rank: int, device_index: int | None) -> MemoryProbe:
        if device_index is None:
            return cls(rank, None, None)
        uuid = str(torch.cuda.get_device_properties(device_index).uuid)
        return cls(rank, torch.device("cuda", device_index), _nvml_handle(uuid))

    def read(self, step: int) -> MemoryRecord:
        """The peaks since the start; a figure that cannot be had is None."""
        allocated = reserved = None
        name = "cpu"
        if self.device is not None:
            allocated = torch.cuda.max_memory_allocated(self.device)
            reserved = torch.cuda.max_memory_reserved(self.device)
            name = f"GPU-{torch.cuda.get_device_properties(self.device).uuid}"
        return MemoryRecord(
            step=step,
            rank=self.rank,
            host=socket.gethostname(),
            device=name,
            allocated_peak_bytes=allocated,
            reserved_peak_bytes=reserved,
            device_used_bytes=_device_used_bytes(self.nvml_handle),
            rss_bytes=psutil.Process().memory_info().rss,
            time_s=time.time(),
        )


def _nvml_handle(uuid: str) -> object | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        handle: object = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return None
    return handle


def _device_used_bytes(handle: object | None) -> int | None:
    """Bytes in use on the whole device. Version 2 leaves out what the driver reserves, as nvidia-smi does."""
    if handle is None:
        return None
    import pynvml

    for version in (pynvml.nvmlMemory_v2, None):
        try:
            info = pynvml.nvmlDeviceGetMemoryInfo(handle, version=version)
        except pynvml.NVMLError:
            continue
        return int(info.used)
    return None
