"""What a plan must know of this host, asked once and without torch."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping

from dist_trainer.launch.plan import HostFacts


def read_host_facts(environ: Mapping[str, str]) -> HostFacts:
    return HostFacts(
        hostname=socket.gethostname(),
        interpreter=sys.executable,
        num_cores=_count_cores(),
        num_gpus=count_visible_gpus(_count_nvidia_gpus(), environ.get("CUDA_VISIBLE_DEVICES")),
        is_root=os.geteuid() == 0,
        environ=environ,
    )


def count_visible_gpus(num_gpus: int, visible: str | None) -> int:
    """How many of the host's GPUs a process sees, by CUDA's rule: the list ends at the first entry that is none."""
    if visible is None or num_gpus == 0:
        return num_gpus
    count = 0
    for entry in visible.split(","):
        device = entry.strip()
        if not (device.startswith(("GPU-", "MIG-")) or (device.isdigit() and int(device) < num_gpus)):
            break
        count += 1
    return count


def _count_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _count_nvidia_gpus() -> int:
    try:
        import pynvml
    except ImportError:
        return 0
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
    finally:
        pynvml.nvmlShutdown()
