"""One rank says what went wrong, as a message and a status."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import TORCHRUN, bin_environment, mini_config, run

from dist_trainer.errors import RunError, UserError
from dist_trainer.records import EVENTS_FILE, Event, read_records
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
from dist_trainer.errors import RunError
from dist_trainer.logs import open_rank_log
from dist_trainer.train import failure
rank, run_dir = int(sys.argv[1]), Path(sys.argv[3])
open_rank_log(run_dir, rank)
error = RunError("own") if sys.argv[2] == "own" else ConnectionError("echo")
failure.fail_in_the_run(error, rank=rank, run_dir=run_dir, started_s=0.0, stderr_fd=2, debug=False)
"""


def test_the_rank_with_a_cause_of_its_own_speaks_and_its_echo_is_silent(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen([sys.executable, "-c", CHILD, rank, kind, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank, kind in (("0", "echo"), ("1", "own"))
    ]
    said = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert said == ["", "dist_trainer: error: rank 1: own\n"]
    assert [rank.returncode for rank in ranks] == [1, 1]
    events = list(read_records(tmp_path / "records" / EVENTS_FILE, Event))
    assert [(event.rank, event.kind) for event in events] == [(1, "error"), (0, "error")]


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
