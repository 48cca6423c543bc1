"""However a run under `launch` ends: one message, one cause in its events, and `report` knows it at once."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ranks import bin_environment, mini_config

from dist_trainer.endings import cause_among, last_step
from dist_trainer.records import EVENTS_FILE, Event, read_records
from dist_trainer.report.reading.findings import read_findings
from dist_trainer.streams import SHOW_CURSOR

pytestmark = pytest.mark.integration

LONG = ("--set", "phases=" + json.dumps([{"name": "long", "sequence_length": 64, "steps": 100_000}]))
LIMIT_S = 120.0


class Running:
    """A training of two ranks under `launch`, at its third step."""

    def __init__(self, folder: Path, launcher: str = "torchrun", *, stdout: int | None = None) -> None:
        self.run_dir = folder / "run"
        words = ["--launcher", launcher, "--nproc-per-node", "2", "--config", str(mini_config(folder)), *LONG]
        with (folder / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dist_trainer", "launch", *words, "--run-dir", str(self.run_dir)],
                cwd=folder,
                env=bin_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if stdout is None else stdout,
                stderr=stderr,
            )
        self._stderr = folder / "stderr"

    def wait_for_step(self, step: int) -> None:
        wait_until(lambda: (last_step(self.run_dir) or 0) >= step or self.process.poll() is not None)
        assert self.process.poll() is None, self.said()

    def rank_pid(self, rank: int) -> int:
        """The one that writes this rank's records."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if any(Path(file.path).name == f"memory-rank-{rank}.jsonl" for file in process.open_files()):
                return process.pid
        raise AssertionError("no such rank")

    def status(self) -> int:
        return self.process.wait(LIMIT_S)

    def said(self) -> str:
        return self._stderr.read_text()

    def cause(self, run_dir: Path | None = None) -> Event | None:
        return cause_among(list(read_records((run_dir or self.run_dir) / "records" / EVENTS_FILE, Event)))


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    started = Running(tmp_path)
    try:
        started.wait_for_step(3)
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def test_control_c_says_at_which_step_gives_the_cursor_back_and_begins_a_line(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    running = Running(tmp_path, stdout=slave)
    os.close(slave)
    os.set_blocking(master, False)
    shown = b""

    def read() -> None:
        nonlocal shown
        try:
            while data := os.read(master, 1 << 16):
                shown += data
        except OSError:
            return

    wait_until(lambda: read() or (last_step(running.run_dir) or 0) >= 3 or running.process.poll() is not None)
    running.process.send_signal(signal.SIGINT)
    wait_until(lambda: read() or running.process.poll() is not None)
    read()
    os.close(master)
    step = last_step(running.run_dir)
    assert running.status() == 130
    message = f"interrupted at step {step} (SIGINT); no step is saved"
    assert running.said().splitlines() == [
        "dist_trainer: told to stop: the run ends, within 120 s; a second signal ends it at once",
        f"dist_trainer: {message}",
    ]
    assert b"\x1b[?25l" in shown, "the bar hides the cursor"
    assert shown.replace(b"\r\n", b"\n").endswith(SHOW_CURSOR.encode())
    progress = read_findings(running.run_dir).progress
    assert (progress.state, progress.text) == ("interrupted", message)


def test_a_rank_that_is_killed(running: Running) -> None:
    os.kill(running.rank_pid(1), signal.SIGKILL)
    assert running.status() == 137
    assert running.said().count("dist_trainer:") == 1
    assert re.search(r"was killed by SIGKILL in step \d+, ", running.said()), running.said()
    cause = running.cause()
    assert cause is not None and cause.message in running.said()
    assert read_findings(running.run_dir).progress.state == "failed"


def test_launch_itself_is_killed(running: Running) -> None:
    running.process.kill()
    wait_until(lambda: running.cause() is not None)
    cause = running.cause()
    assert cause is not None
    assert cause.message.startswith("nothing was heard any more from the launching process")
    assert read_findings(running.run_dir).progress.state == "failed"


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_folder_that_is_gone_is_told_at_once(how: str, running: Running) -> None:
    moved = running.run_dir.with_name("moved")
    if how == "moved":
        running.run_dir.rename(moved)
    else:
        # Of a folder that is written to something may be left at first.
        running.run_dir.rename(moved)
        shutil.rmtree(moved)
    assert running.status() == 1
    assert running.said().count("dist_trainer:") == 1
    assert "the run's folder is gone" in running.said() and str(running.run_dir) in running.said()
    assert not running.run_dir.exists(), "it is not made again"
    if how == "moved":
        cause = running.cause(moved)
        assert cause is not None and "the run's folder is gone" in cause.message


@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
def test_where_no_terminal_is_there_is_no_progress_bar(launcher: str, tmp_path: Path) -> None:
    """Open MPI gives its ranks a terminal whatever there is; a bar in a pipe hides the cursor of who reads it."""
    if shutil.which(launcher, path=bin_environment()["PATH"]) is None:
        pytest.skip(f"{launcher} is not installed")
    with (tmp_path / "stdout").open("wb") as stdout:
        running = Running(tmp_path, launcher, stdout=stdout.fileno())
    try:
        running.wait_for_step(3)
        running.process.send_signal(signal.SIGTERM)
        assert running.status() == 143
    finally:
        running.process.kill()
    printed = (tmp_path / "stdout").read_text()
    assert "\x1b" not in printed
    assert printed.splitlines()[-1].startswith("step 1 ")


@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
def test_who_reads_two_lines_and_goes_away_ends_nothing(launcher: str, tmp_path: Path) -> None:
    if shutil.which(launcher, path=bin_environment()["PATH"]) is None:
        pytest.skip(f"{launcher} is not installed")
    read_fd, write_fd = os.pipe()
    running = Running(tmp_path, launcher, stdout=write_fd)
    os.close(write_fd)
    try:
        with os.fdopen(read_fd) as head:
            assert [head.readline() != "" for _ in range(2)] == [True, True]
        # There are lines to be printed until the first step.
        running.wait_for_step(3)
        running.process.send_signal(signal.SIGTERM)
        assert running.status() == 143
    finally:
        running.process.kill()
