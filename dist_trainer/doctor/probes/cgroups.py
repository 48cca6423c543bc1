"""The limits that a container or a batch job sets for this process: cgroup v1 and v2."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def cpu_quota(membership: Path = _MEMBERSHIP, root: Path = _ROOT) -> float | None:
    """In CPUs: the smallest quota of this process's group and its ancestors; None without any."""
    found = []
    for folder in _groups("cpu", membership, root):
        words = _read(folder / "cpu.max").split()
        if not words:
            words = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and all(word.isdigit() for word in words):
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def memory_limit_bytes(membership: Path = _MEMBERSHIP, root: Path = _ROOT) -> int | None:
    """The smallest limit of this process's group and its ancestors; None without any."""
    found = []
    for folder in _groups("memory", membership, root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name)
            if text.isdigit():
                found.append(int(text))
    return min(found, default=None)


def _groups(controller: str, membership: Path, root: Path) -> list[Path]:
    """The folders of this process's group and its ancestors, in the hierarchy that has the controller."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        own = top / path.lstrip("/")
        folders += [own, *(parent for parent in own.parents if parent.is_relative_to(top))]
    return folders


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
