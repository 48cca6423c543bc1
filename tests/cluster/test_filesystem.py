"""Which file system a folder lies on, and whether other hosts may write to it."""

from __future__ import annotations

from pathlib import Path

from dist_trainer.cluster.filesystem import is_local, mount_of

MOUNTS = [("/", "ext4"), ("/home", "nfs4"), ("/home/scratch", "tmpfs"), ("/home", "lustre")]


def test_the_deepest_mount_holds_the_path_and_the_later_of_two_hides_the_first() -> None:
    assert mount_of(Path("/var/tmp"), MOUNTS) == ("/", "ext4")
    assert mount_of(Path("/home/user"), MOUNTS) == ("/home", "lustre")
    assert mount_of(Path("/home/scratch/run"), MOUNTS) == ("/home/scratch", "tmpfs")
    assert mount_of(Path("/homework"), MOUNTS) == ("/", "ext4")


def test_shared_memory_is_local() -> None:
    assert is_local(Path("/dev/shm"))
