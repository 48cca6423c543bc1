"""The doctor on this one host, as a user types it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from test_cli import HEAVY, one_message, probe, python

ONE_RANK = ("doctor", "--nproc-per-node", "1")


def test_a_host_in_good_order(tmp_path: Path) -> None:
    answer = probe(*ONE_RANK, "--json", cwd=tmp_path)
    said = json.loads(answer.out)
    failed = [finding for finding in said["findings"] if finding["level"] == "fail"]
    assert failed == []
    assert answer.status == 0
    assert {"reachable", "python", "torch", "port", "runs folder", "room", "/dev/shm"} <= {
        finding["check"] for finding in said["findings"]
    }
    (host,) = said["examination"]["hosts"]
    assert host["facts"]["hostname"] == socket.gethostname()
    assert said["examination"]["needs"]["plan"]["world_size"] == 1
    assert not answer.packages & HEAVY
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_fails_is_status_1_and_a_line_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as holder:
        port = holder.getsockname()[1]
        answer = python("-m", "dist_trainer", *ONE_RANK, cwd=tmp_path, MASTER_PORT=str(port))
    assert answer.status == 1, answer
    failed, hint, *_ = (line for line in answer.out.splitlines() if not line.startswith(" " * 6 + "check"))
    assert failed.split()[:2] == ["fail", "port"]
    assert f"{port} (MASTER_PORT) is taken by " in failed
    assert "MASTER_PORT" in hint


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--hostfile", "nowhere"), "The hostfile cannot be read."),
        (("--hostfle", "hosts"), "did you mean --hostfile?"),
        (("--hostfile", "mpi", "--include", "node7"), "There is no host 'node7'."),
        (("--include", "node7"), "There is no host 'node7'."),
        (("--config", "tinny"), "did you mean 'tiny'?"),
        (("--nproc-per-node", "many"), "not a number of ranks"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_status_2_and_asks_nobody(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "mpi").write_text("h1:2\nh2\nh2\n")
    assert said in one_message(python("-m", "dist_trainer", "doctor", *arguments, cwd=tmp_path))
