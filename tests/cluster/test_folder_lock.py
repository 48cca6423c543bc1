from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_disks import in_own_mounts

from dist_trainer.cluster import filesystem, folder_lock
from dist_trainer.cluster.folder_lock import FolderLock
from dist_trainer.errors import EXIT_USER_ERROR, UserError

HOLDING = """
import os, sys, time
from pathlib import Path
from dist_trainer.cluster.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]), sys.argv[2], launch_id=sys.argv[3] or None)
print("held", flush=True)
if os.fork() == 0:  # as a loader's worker, which outlives a killed rank by some seconds
    os.closerange(0, 3)
    time.sleep(5)
    os._exit(0)
sys.stdin.read()
lock.release()
"""


@contextmanager
def holder(folder: Path, part: str, launch_id: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder until its standard input ends."""
    command = (sys.executable, "-c", HOLDING, str(folder), part, launch_id)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        if process.poll() is None:
            process.communicate()


def say_of_another_host(folder: Path, part: str = "ranks", **others: Any) -> Path:
    """What a holder on another host leaves."""
    with FolderLock(folder, "ranks"):
        path = folder / "lock" / f"{part}.json"
        values = json.loads((folder / "lock" / "ranks.json").read_text())
    path.write_text(json.dumps({**values, "host": "node7", "boot_id": "another", **others}))
    return path


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder lies on a file system of several hosts, and a look takes no 8 s."""
    monkeypatch.setattr(filesystem, "is_of_one_host", lambda path: False)
    monkeypatch.setattr(folder_lock, "WATCH_S", 1.0)


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)


@pytest.mark.parametrize("part", ["launch", "ranks"])
@pytest.mark.parametrize("theirs", ["launch", "ranks"])
def test_a_second_run_is_refused_and_told_who_holds_the_folder(tmp_path: Path, part: Any, theirs: str) -> None:
    with holder(tmp_path, theirs) as first:
        with pytest.raises(UserError) as caught:
            FolderLock(tmp_path, part)
        assert caught.value.exit_status == EXIT_USER_ERROR
        assert f"process {first.pid}, since 20" in caught.value.problem and os.uname().nodename in caught.value.problem
        assert caught.value.where == str(tmp_path)
        # The first goes on undisturbed.
        assert json.loads((tmp_path / "lock" / f"{theirs}.json").read_text())["pid"] == first.pid
    FolderLock(tmp_path, part).release()
    assert sorted(path.name for path in (tmp_path / "lock").iterdir()) == ["launch", "ranks"]


def test_ranks_hold_the_folder_beside_their_own_launch_alone(tmp_path: Path) -> None:
    with holder(tmp_path, "launch", "id-1"):
        FolderLock(tmp_path, "ranks", launch_id="id-1").release()
        for other in ("id-2", None):
            with pytest.raises(UserError, match="`launch` or `monitor` on"):
                FolderLock(tmp_path, "ranks", launch_id=other)


def test_a_run_that_was_killed_leaves_the_folder_free_at_once(tmp_path: Path) -> None:
    with holder(tmp_path, "ranks") as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert (tmp_path / "lock" / "ranks.json").exists()
        started_s = time.monotonic()
        said: list[str] = []
        FolderLock(tmp_path, "ranks", say=said.append).release()
        assert not said and time.monotonic() - started_s < 4, "its forked child still lives, and holds nothing"


def test_launch_waits_for_the_ranks_of_a_launch_that_was_killed(tmp_path: Path) -> None:
    said: list[str] = []
    with holder(tmp_path, "ranks", "id-1") as orphan:
        ending = threading.Timer(2.0, orphan.kill)
        ending.start()
        FolderLock(tmp_path, "launch", launch_id="id-2", say=said.append).release()
        ending.join()
    assert len(said) == 1 and f"process {orphan.pid}" in said[0] and "waiting for their end" in said[0]


def test_ranks_that_do_not_end_are_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "ORPHANS_S", 0.5)
    with holder(tmp_path, "ranks", "id-1"), pytest.raises(UserError, match="rank 0 on"):
        FolderLock(tmp_path, "launch", launch_id="id-2")


@pytest.mark.usefixtures("without_locks")
def test_without_locks_the_process_that_is_named_decides(tmp_path: Path) -> None:
    with holder(tmp_path, "ranks") as first:
        with pytest.raises(UserError, match=f"process {first.pid}"):
            FolderLock(tmp_path, "ranks")
        first.kill()
        first.wait()
        FolderLock(tmp_path, "ranks").release()
        # The same number, of a process that began at another time.
        path = say_of_another_host(tmp_path)
        values = json.loads(path.read_text())
        path.write_text(
            json.dumps({**values, "boot_id": folder_lock._boot_id(), "pid": os.getpid(), "started_ticks": 1})
        )
        FolderLock(tmp_path, "ranks").release()


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("has_locks", [True, False])
def test_another_host_that_lives_is_seen_by_its_beat_whatever_the_clocks(
    tmp_path: Path, has_locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_locks:
        monkeypatch.setattr(fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(errno.EOPNOTSUPP, "no")))
    path = say_of_another_host(tmp_path)
    stop = threading.Event()

    def beat() -> None:
        time_ns = 10**9  # long ago
        while not stop.wait(0.2):
            time_ns -= 10**6
            os.utime(path, ns=(time_ns, time_ns))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="rank 0 on node7, process"):
            FolderLock(tmp_path, "ranks")
    finally:
        stop.set()
        thread.join()
    assert json.loads(path.read_text())["host"] == "node7"


@pytest.mark.usefixtures("shared")
def test_another_host_that_died_is_recognised_and_what_is_waited_for_is_said(tmp_path: Path) -> None:
    path = say_of_another_host(tmp_path)
    os.utime(path, (4e9, 4e9))  # in the future, by this clock
    said: list[str] = []
    FolderLock(tmp_path, "ranks", say=said.append).release()
    assert len(said) == 1 and "node7" in said[0]


def test_after_a_reboot_a_folder_of_this_host_alone_is_free_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "is_of_one_host", lambda path: True)
    say_of_another_host(tmp_path, host=os.uname().nodename)
    said: list[str] = []
    FolderLock(tmp_path, "ranks", say=said.append).release()
    assert not said


def test_the_beat_of_a_holder(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "ranks"):
        path = tmp_path / "lock" / "ranks.json"
        first, deadline_s = path.stat().st_mtime_ns, time.monotonic() + 20
        while path.stat().st_mtime_ns == first and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert path.stat().st_mtime_ns != first


def test_a_copy_of_a_folder_in_use_is_free(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with holder(tmp_path / "a", "ranks"):
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        FolderLock(tmp_path / "b", "ranks").release()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "[" * 100_000, '{"part": 1}', "9" * 5000, '{"pid": "x"}', "\0"],
    ids=lambda value: repr(value)[:20],
)
def test_what_cannot_be_understood_holds_nothing(tmp_path: Path, text: str) -> None:
    FolderLock(tmp_path, "ranks").release()
    (tmp_path / "lock" / "ranks.json").write_text(text)
    FolderLock(tmp_path, "ranks").release()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    with pytest.raises(UserError, match="cannot be locked") as caught:
        FolderLock(tmp_path, "ranks")
    assert str(tmp_path / "lock") in str(caught.value)


def test_a_full_disk_is_named_with_what_is_free() -> None:
    code = """
from pathlib import Path
from dist_trainer.cluster.folder_lock import FolderLock
from dist_trainer.errors import RunError
try:
    FolderLock(Path("/mnt/run"), "launch")
except RunError as error:
    print(error)
"""
    script = 'mount -t tmpfs -o size=64k tmpfs /mnt && mkdir /mnt/run && cat /dev/zero > /mnt/hog; exec "$@"'
    ended = in_own_mounts(script, [sys.executable, "-c", code])
    assert "The run's folder cannot be locked: the disk is full" in ended.output
    assert "0 bytes free in /mnt/run" in ended.output


def test_a_second_start_is_refused_before_it_changes_anything(tmp_path: Path) -> None:
    """`launch`, `monitor` and rank 0 of a bare launcher."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    python = (sys.executable, "-m", "dist_trainer")
    starts = (
        (*python, "launch", "--launcher", "torchrun", "--nproc-per-node", "1", "--run-dir", str(run_dir)),
        (*python, "train", "--run-dir", str(run_dir), "--max-steps", "1"),
        (*python, "monitor", "--output", str(run_dir), "--", "true"),
    )
    with holder(run_dir, "launch", "of another") as first:
        before = sorted(run_dir.rglob("*"))
        for command in starts:
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
            assert done.returncode == EXIT_USER_ERROR, done.stderr
            assert done.stderr.count("Another run writes into this folder") == 1, done.stderr
            assert f"process {first.pid}" in done.stderr
            assert sorted(run_dir.rglob("*")) == before
