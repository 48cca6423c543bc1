"""One rank says what went wrong, as a message and a status."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import TORCHRUN, bin_environment, mini_config, run
from run_folders import event, step, write_lines

from dist_trainer.cause import CAUSE_FD, read_cause
from dist_trainer.errors import RunError, UserError
from dist_trainer.records import EVENTS_FILE, STEPS_FILE, Event, RecordWriter, read_records
from dist_trainer.train.failure import describe, exit_status


def test_a_users_mistake_ends_with_two_and_a_run_that_fails_with_one() -> None:
    errors = (UserError("a"), RunError("b"), ValueError("c"), KeyboardInterrupt())
    assert [exit_status(error) for error in errors] == [2, 1, 1, 130]


def test_an_error_of_the_program_says_how_to_see_more() -> None:
    assert describe(ValueError("odd")).startswith("ValueError: odd")
    assert "--debug" in describe(ValueError("odd"))
    assert "--debug" not in describe(UserError("wrong"))


CHILD = """
import sys, time
from pathlib import Path
from dist_trainer.endings import Start
from dist_trainer.errors import RunError
from dist_trainer.logs import open_rank_log
from dist_trainer.train import failure
rank, run_dir, slowness_s = int(sys.argv[1]), Path(sys.argv[3]), float(sys.argv[4])
open_rank_log(run_dir, rank)
say = failure.say
failure.say = lambda *words, **where: (print("speaks", flush=True), time.sleep(slowness_s), say(*words, **where))
error = RunError("own") if sys.argv[2] == "own" else ConnectionError("echo")
start = Start(run_dir, int(sys.argv[5]))
failure.fail_in_the_run(error, failure.Speaker(rank, start, stderr_fd=2, debug=False))
"""


def fail(rank: int, kind: str, run_dir: Path, *, slowness_s: float = 0.0, after: int = 0) -> subprocess.Popen[str]:
    words = [str(rank), kind, str(run_dir), str(slowness_s), str(after)]
    command = [sys.executable, "-c", CHILD, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def errors_of(run_dir: Path) -> list[tuple[int | None, str]]:
    return [(event.rank, event.kind) for event in read_records(run_dir / "records" / EVENTS_FILE, Event)]


def test_the_rank_with_a_cause_of_its_own_speaks_and_its_echo_is_silent(tmp_path: Path) -> None:
    ranks = [fail(0, "echo", tmp_path), fail(1, "own", tmp_path)]
    said = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert said == ["", "dist_trainer: error: rank 1: own\n"]
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert errors_of(tmp_path) == [(1, "error"), (0, "error")]


def test_no_rank_ends_before_the_one_that_speaks_has_spoken(tmp_path: Path) -> None:
    """The end of one makes a launcher kill the others at once."""
    speaker = fail(1, "own", tmp_path, slowness_s=2.0)
    assert speaker.stdout is not None and speaker.stdout.readline() == "speaks\n"
    other = fail(0, "own", tmp_path)
    assert other.wait(60) == 1
    speaker.kill()
    assert speaker.communicate()[1] == "dist_trainer: error: rank 1: own\n"
    assert other.communicate()[1] == ""


def test_an_error_of_an_earlier_start_silences_nobody_whatever_its_time(tmp_path: Path) -> None:
    """The clock has been set back since; and where it is ahead, an error of now is older than the start."""
    path = tmp_path / "records" / EVENTS_FILE
    RecordWriter(path).write(Event("error", "of an earlier start", 0, 4.0e9))
    failing = fail(0, "own", tmp_path, after=path.stat().st_size)
    assert failing.communicate(timeout=60)[1] == "dist_trainer: error: own\n"


def test_where_the_folder_is_gone_the_cause_is_said_all_the_same(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    code = CHILD.replace("start = Start", "import shutil; shutil.rmtree(run_dir); start = Start")
    words = ["0", "own", str(run_dir), "0", "0"]
    ended = run([sys.executable, "-c", code, *words], cwd=tmp_path)
    assert (ended.status, ended.output) == (1, "speaks\ndist_trainer: error: own\n")
    assert not run_dir.exists()


def test_a_rank_with_a_guard_tells_it_and_says_nothing_itself(tmp_path: Path) -> None:
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-c", CHILD, "0", "echo", str(tmp_path), "0", "0"]
    environ = bin_environment({CAUSE_FD: str(write_fd)})
    done = subprocess.run(command, env=environ, pass_fds=[write_fd], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    told = read_cause(os.read(read_fd, 4096))
    assert told is not None and told.may_be_echo and told.text.startswith("ConnectionError: echo")
    os.close(read_fd)
    os.close(write_fd)
    assert errors_of(tmp_path) == [(0, "error")]


STANDING = """
import ctypes, os, signal, sys, time
from pathlib import Path
from dist_trainer.endings import Start
from dist_trainer.train import failure
from dist_trainer.train.signals import SignalThread
speaker = failure.Speaker(int(sys.argv[1]), Start.now(Path(sys.argv[2])), stderr_fd=2, debug=False)
SignalThread(lambda number: failure.end_by_signal(number, speaker), lambda: 60.0)
if os.fork() == 0:
    # A loader's worker: what ends it is nobody's end but its own.
    signal.raise_signal(signal.SIGTERM)
os.wait()
print("stands", flush=True)
# As a collective does: no Python runs in this thread until it is over.
while True:
    ctypes.CDLL(None).poll(None, 0, 60_000)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_rank_that_is_told_to_end_while_it_stands_in_a_collective_says_and_records_it(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", STANDING, "0", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None and rank.stdout.readline() == "stands\n"
        assert errors_of(tmp_path) == []
        write_lines(tmp_path / "records" / EVENTS_FILE, [event("phase", "phase 1: short", 0.0, step=0)])
        write_lines(tmp_path / "records" / STEPS_FILE, [step(8), step(9)])
        rank.send_signal(number)
        said = rank.communicate(timeout=60)[1]
    assert rank.returncode == 128 + number
    assert said == f"dist_trainer: interrupted at step 9 ({number.name}); no step is saved\n"
    assert errors_of(tmp_path)[-1] == (0, "interrupted")


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As under nohup."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + STANDING
    command = [sys.executable, "-c", code, "0", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None and rank.stdout.readline() == "stands\n"
        rank.send_signal(signal.SIGINT)
        rank.send_signal(signal.SIGTERM)
        rank.communicate(timeout=60)
    assert rank.returncode == 128 + signal.SIGTERM


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dist_trainer", "train", "--config", "nowhere", "--debug"]
    ended = run(command, cwd=tmp_path)
    assert ended.status == 2
    assert "Traceback" in ended.output and "dist_trainer: error: no configs file of this name" in ended.output


@pytest.mark.integration
def test_when_a_rank_is_killed_the_others_end_with_one_message(tmp_path: Path) -> None:
    """mpirun and torchrun would end them anyway; here the ranks are alone."""
    config = mini_config(tmp_path)
    words = ["-m", "dist_trainer", "train", "--config", str(config), "--run-dir", str(tmp_path / "run")]
    words += ["--set", "phases=" + json.dumps([{"name": "long", "sequence_length": 64, "steps": 100000}])]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(2):
        place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        environ = bin_environment() | {name: str(value) for name, value in place.items()}
        environ["MASTER_ADDR"] = "127.0.0.1"
        started.append(
            subprocess.Popen([sys.executable, *words], env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        )
    steps = tmp_path / "run" / "records" / "steps.jsonl"
    for _ in range(600):
        if steps.exists() and steps.stat().st_size:
            break
        time.sleep(0.1)
    started[1].send_signal(signal.SIGKILL)
    said = started[0].communicate(timeout=60)[1]
    started[1].communicate()
    assert started[0].returncode == 1
    assert said.count("dist_trainer: error:") == 1


@pytest.mark.integration
def test_a_mistake_that_only_the_ranks_can_find_is_said_once_and_ends_with_two(tmp_path: Path) -> None:
    tokens = tmp_path / "train.bin"
    tokens.write_bytes(b"\x01\x00" * 3 + b"\xff\xff" + b"\x01\x00" * 200)
    command = [*TORCHRUN, "2", "-m", "dist_trainer", "train", "--config", str(mini_config(tmp_path))]
    ended = run([*command, "--set", f"data.source={tokens}"], cwd=tmp_path)
    assert ended.output.count("dist_trainer: error:") == 1
    assert str(tokens) in ended.output and "65535" in ended.output
