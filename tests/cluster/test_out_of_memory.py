"""A kill for want of memory is told from other kills, where the kernel counts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_trainer.cluster.out_of_memory import KillWatch, MemoryGroup, find_group, own_group

SYSTEMD = ["30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"]
BOTH = [
    "35 31 0:32 / /cg/memory rw,relatime - cgroup cgroup rw,memory",
    "41 31 0:38 / /cg/unified rw,relatime - cgroup2 cgroup2 rw",
]
DOCKER = ["40 31 0:32 /docker/ab /cg/memory ro - cgroup cgroup rw,memory"]


@pytest.mark.parametrize(
    ("groups", "mounts", "folder", "version"),
    [
        (["0::/user.slice/a:b"], SYSTEMD, "/sys/fs/cgroup/user.slice/a:b", 2),
        (["4:memory:/job", "0::/"], BOTH, "/cg/memory/job", 1),
        (["4:cpu,memory:/docker/ab", "0::/"], DOCKER, "/cg/memory", 1),
    ],
)
def test_the_group_that_counts_a_processs_memory(
    groups: list[str], mounts: list[str], folder: str, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert find_group(groups, mounts) == MemoryGroup(Path(folder), version)


def test_where_there_are_no_groups_nothing_is_known() -> None:
    assert find_group([], SYSTEMD) is None
    assert find_group(["0::/a"], []) is None
    assert KillWatch(None).explain() is None


def test_of_a_group_that_is_not_counted_it_is_the_nearest_above(tmp_path: Path) -> None:
    (tmp_path / "step" / "task").mkdir(parents=True)
    (tmp_path / "step" / "memory.events").touch()
    found = find_group(["0::/step/task"], [f"30 23 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw"])
    assert found == MemoryGroup(tmp_path / "step", 2)


def test_only_a_count_that_rose_explains_a_kill(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    (tmp_path / "memory.max").write_text("4000000000\n")
    watch = KillWatch(MemoryGroup(tmp_path, 2))
    assert watch.explain() is None
    events.write_text("low 0\noom 4\noom_kill 3\noom_group_kill 0\n")
    assert watch.explain() == "out of memory: the kernel's oom_kill count rose to 3, its control group may have 4.00 GB"
    (tmp_path / "memory.max").write_text("max\n")
    assert "the host had none left" in str(watch.explain())


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group that may have 60 MB."""
    own = own_group()
    if own is None or os.getuid() != 0:
        pytest.skip("no control group for memory, or not root")
    folder = own.folder / f"dist_trainer-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.max" if own.version == 2 else "memory.limit_in_bytes")).write_text("60000000")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        yield folder
    finally:
        folder.rmdir()


GREEDY = """
import os, signal, sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
from dist_trainer.cluster.out_of_memory import KillWatch, own_group
watch = KillWatch(own_group())
for is_greedy in (False, True):
    pid = os.fork()
    if pid == 0:
        held = b"x" * 10**9 if is_greedy else os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    print(watch.explain())
"""


def test_the_kernel_itself_is_asked(small_group: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GREEDY, str(small_group)], capture_output=True, text=True, check=True, timeout=60
    )
    killed, starved = done.stdout.splitlines()
    assert killed == "None"
    assert starved.startswith(
        "out of memory: the kernel's oom_kill count rose to 1, its control group may have 0.06 GB"
    )
