"""Whether the kernel's out-of-memory killer ended a process here: an exit by SIGKILL alone does not say why.

For each control group the kernel counts the processes that it killed for lack of memory, whether the group reached its
own limit or the whole host ran out.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.units import format_gb

# cgroup v1 reports a group without a limit as the largest multiple of the page size.
_NO_LIMIT_BYTES = 1 << 60
_COUNTS = {1: "memory.oom_control", 2: "memory.events"}
_LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}


@dataclass(frozen=True)
class MemoryGroup:
    """The control group that this process's memory is charged to. `version`: of the cgroup interface, 1 or 2."""

    folder: Path
    version: int

    def num_kills(self) -> int | None:
        """How many of its processes the OOM killer has killed so far; None if the kernel does not say."""
        with suppress(OSError, ValueError):
            for line in (self.folder / _COUNTS[self.version]).read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
        return None

    def limit_bytes(self) -> int | None:
        with suppress(OSError, ValueError):
            limit = int((self.folder / _LIMIT[self.version]).read_text())
            return limit if limit < _NO_LIMIT_BYTES else None
        return None


class KillWatch:
    """Tells whether a process of this group was killed for lack of memory since this object was made."""

    def __init__(self, group: MemoryGroup | None) -> None:
        self._group = group
        self._before = None if group is None else group.num_kills()

    def explain(self) -> str | None:
        """To be asked when a process of this group was killed just now: a sentence for people, or None if memory was
        not the reason.
        """
        if self._group is None or self._before is None:
            return None
        now = self._group.num_kills()
        if now is None or now <= self._before:
            return None
        limit = self._group.limit_bytes()
        where = "the host had none left" if limit is None else f"its control group may have {format_gb(limit)}"
        return f"out of memory: the kernel's oom_kill count rose to {now}, {where}"


def own_group(proc: Path = Path("/proc/self")) -> MemoryGroup | None:
    """None if there are no control groups here, or none that can be read."""
    try:
        groups = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return None
    return find_group(groups, mounts)


def find_group(groups: Iterable[str], mounts: Iterable[str]) -> MemoryGroup | None:
    """The group from the lines of /proc/self/cgroup and /proc/self/mountinfo, in the hierarchy that counts memory."""
    paths: dict[int, str] = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            paths[1] = path
        elif not controllers:
            paths[2] = path
    found = {}
    for line in mounts:
        place, _, kind = line.partition(" - ")
        # Fields by proc(5): id, parent, device, root, mount point, ... - type, source, options.
        root, point = place.split()[3:5]
        fields = kind.split()
        version = 2 if fields[0] == "cgroup2" else 1
        is_memory = version == 2 or (fields[0] == "cgroup" and "memory" in fields[-1].split(","))
        if not is_memory or version not in paths:
            continue
        # In a container the root of the mount is often the group itself.
        path = paths[version].removeprefix(root) if root != "/" else paths[version]
        found[version] = MemoryGroup(_counted(Path(point), path.strip("/"), _COUNTS[version]), version)
    # On a host with both versions, memory is counted by version 1 if that has a memory hierarchy.
    return found.get(1) or found.get(2)


def _counted(top: Path, path: str, name: str) -> Path:
    """The group, or its nearest ancestor with memory counts: SLURM may leave the groups of tasks without them."""
    folder = top / path
    while folder != top and not (folder / name).exists():
        folder = folder.parent
    return folder
