"""Which file system a folder lies on, and whether what writes to it can be seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dist_trainer.cluster import filesystem
from dist_trainer.cluster.filesystem import mount_of

MOUNTS = [("/", "ext4"), ("/home", "nfs4"), ("/home/scratch", "tmpfs"), ("/home", "lustre")]


def test_the_deepest_mount_holds_the_path_and_the_later_of_two_hides_the_first() -> None:
    assert mount_of(Path("/var/tmp"), MOUNTS) == ("/", "ext4")
    assert mount_of(Path("/home/user"), MOUNTS) == ("/home", "lustre")
    assert mount_of(Path("/home/scratch/run"), MOUNTS) == ("/home/scratch", "tmpfs")
    assert mount_of(Path("/homework"), MOUNTS) == ("/", "ext4")


SHOWS = f"from pathlib import Path; import {filesystem.__name__} as f; print(f.shows_its_writers(Path('/dev/shm')))"
IN_A_CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.mark.skipif(not filesystem.sees_all_processes(), reason="the tests are in a container themselves")
def test_shared_memory_is_of_one_host() -> None:
    assert filesystem.shows_its_writers(Path("/dev/shm"))


@pytest.mark.cluster
def test_a_container_does_not_see_who_else_writes() -> None:
    command = [*IN_A_CONTAINER, sys.executable, "-c", SHOWS]
    if subprocess.run([*IN_A_CONTAINER, "true"], capture_output=True).returncode != 0:
        pytest.skip("no namespace can be made here (root, unshare)")
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
