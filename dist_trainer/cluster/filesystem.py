"""On what kind of file system a folder lies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil

# PROC_PID_INIT_INO in Linux' include/linux/proc_ns.h: the inode of the host's own PID namespace.
_HOST_PID_NAMESPACE = 0xEFFFFFFC

_OF_ONE_HOST = frozenset({"apfs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "ramfs", "tmpfs", "xfs", "zfs"})


def mount_of(path: Path, mounts: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """(mount point, type) of the mount that `path` (absolute) lies under, out of such pairs.

    Of two mounts on one point the later one hides the other. ("", "") if none fits.
    """
    found = ("", "")
    for point, kind in mounts:
        if path.is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, kind)
    return found


def shows_its_writers(path: Path) -> bool:
    """Whether every process that could write there is visible from here.

    Processes of other hosts are not visible, and a container sees only its own, while a mounted folder may be mounted
    into other containers too. An unknown file system counts as shared.
    """
    kind = _kind(path)
    return kind == "overlay" or (kind in _OF_ONE_HOST and sees_all_processes())


def is_of_one_host(path: Path) -> bool:
    """Whether no other host can write there. An unknown file system counts as shared."""
    return _kind(path) in {"overlay", *_OF_ONE_HOST}


def _kind(path: Path) -> str:
    mounts = [(one.mountpoint, one.fstype) for one in psutil.disk_partitions(all=True)]
    return mount_of(path.resolve(), mounts)[1]


def sees_all_processes() -> bool:
    """Whether this is the host's own PID namespace."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == _HOST_PID_NAMESPACE
    except OSError:
        return True
