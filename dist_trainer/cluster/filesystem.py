"""What kind of file system a folder lies on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil

LOCAL = frozenset({"apfs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"})


def mount_of(path: Path, mounts: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The mount point that `path`, absolute, lies under, and its type, from (mount point, type) pairs.

    Of two mounts on one point the later one is seen. ("", "") where none fits.
    """
    found = ("", "")
    for point, kind in mounts:
        if path.is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, kind)
    return found


def is_local(path: Path) -> bool:
    """Whether no other host can write there; an unknown type counts as shared."""
    mounts = [(one.mountpoint, one.fstype) for one in psutil.disk_partitions(all=True)]
    return mount_of(path.resolve(), mounts)[1] in LOCAL
