"""CPUs, memory, limits and /dev/shm of this host as a process finds them that is started the way ranks are."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from dist_trainer.doctor.facts import UNLIMITED, Cpus, MemoryFacts, NumaNode, ResourceLimits, SharedMemory
from dist_trainer.doctor.probes import cgroups

_NUMA_NODES = Path("/sys/devices/system/node")
_INFINIBAND = Path("/sys/class/infiniband")


def cpus(numa_nodes: Path = _NUMA_NODES) -> Cpus:
    usable = os.sched_getaffinity(0)
    nodes = []
    for folder in numa_nodes.glob("node[0-9]*"):
        own = parse_cpu_list((folder / "cpulist").read_text())
        nodes.append(NumaNode(int(folder.name.removeprefix("node")), len(own & usable)))
    return Cpus(
        num_logical=os.cpu_count() or 1,
        num_usable=len(usable),
        quota=cgroups.cpu_quota(),
        numa=tuple(sorted(nodes, key=lambda node: node.number)),
    )


def memory() -> MemoryFacts:
    import psutil

    found = psutil.virtual_memory()
    limit = cgroups.memory_limit_bytes()
    # A limit at or above the host's memory is no limit.
    return MemoryFacts(found.total, found.available, limit if limit is not None and limit < found.total else None)


def limits() -> ResourceLimits:
    return ResourceLimits(_soft_limit(resource.RLIMIT_NOFILE), _soft_limit(resource.RLIMIT_MEMLOCK))


def shared_memory(folder: Path = Path("/dev/shm")) -> SharedMemory:
    """Raises OSError if there is no such folder."""
    found = os.statvfs(folder)
    return SharedMemory(found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail, os.access(folder, os.W_OK))


def infiniband_devices(folder: Path = _INFINIBAND) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.glob("*")))


def parse_cpu_list(text: str) -> set[int]:
    """'0-3,8' -> {0, 1, 2, 3, 8}: the kernel's notation for sets of CPUs."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _soft_limit(which: int) -> int:
    soft, _ = resource.getrlimit(which)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft
