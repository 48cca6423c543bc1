"""How many bytes this rank holds: in torch's allocator, on the whole device (NVML), and in its resident set."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field

import psutil
import torch

from dist_trainer.monitor.gpu.devices import DeviceIdentity
from dist_trainer.monitor.rank import RankMonitor
from dist_trainer.records import MemoryRecord


def rank_device(cuda_index: int | None) -> DeviceIdentity | None:
    """The rank's GPU as NVML can find it. None on a CPU, even if the host has GPUs: their memory is not this rank's."""
    if cuda_index is None:
        return None
    properties = torch.cuda.get_device_properties(cuda_index)
    uuid = getattr(properties, "uuid", None)
    place = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    known = [number for number in place if number is not None]
    bus_id = "{:08X}:{:02X}:{:02X}.0".format(*known) if len(known) == len(place) else None
    return DeviceIdentity(None if uuid is None else str(uuid), bus_id)


@dataclass(frozen=True)
class MemoryProbe:
    """Reads one rank's memory at the end of a step. `device` is None where there is no GPU."""

    rank: int
    device: torch.device | None
    monitor: RankMonitor
    host: str = field(default_factory=socket.gethostname)
    process: psutil.Process = field(default_factory=psutil.Process)

    def read(self, step: int) -> MemoryRecord:
        """The peaks since the start; a figure that is not available is None. The device's peak is the monitor's."""
        allocated = reserved = None
        if self.device is not None:
            allocated = torch.cuda.max_memory_allocated(self.device)
            reserved = torch.cuda.max_memory_reserved(self.device)
        self.monitor.at_step_edge()
        return MemoryRecord(
            step=step,
            rank=self.rank,
            host=self.host,
            device=self.monitor.device,
            allocated_peak_bytes=allocated,
            reserved_peak_bytes=reserved,
            device_used_bytes=self.monitor.peak_used_bytes,
            rss_bytes=self.process.memory_info().rss,
            time_s=time.time(),
            monotonic_s=time.monotonic(),
            start_id=self.monitor.start_id,
        )
