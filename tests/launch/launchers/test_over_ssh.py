"""One command on every host: as it stands on this one, through ssh and a shell on the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dist_trainer.launch.launchers.over_ssh import NODE_RANK, NUM_SLOTS, command_for

ROOT = Path(__file__).parents[3]
WORDS = ("python", "-m", "x", f"--node-rank={NODE_RANK}", f"--n={NUM_SLOTS}", "it's", "$HOME", "a b", "")


def test_on_this_host_the_words_are_the_command() -> None:
    said = command_for("box", 1, 8, WORDS, hostname="box.cluster", cwd="/home/u")
    assert said == ["python", "-m", "x", "--node-rank=1", "--n=8", "it's", "$HOME", "a b", ""]


def test_a_shell_on_another_host_reads_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/a b")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    *ssh, host, script = command_for("node2", 1, 8, ("printf", r"%s\0", *WORDS), hostname="box", cwd="/")
    assert (ssh[0], host) == ("ssh", "node2")
    answer = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True)
    assert answer.stdout.split("\0")[:-1] == [w.replace(NODE_RANK, "1").replace(NUM_SLOTS, "8") for w in WORDS]
    assert "'PYTHONPATH=/a b'" in script


@pytest.mark.parametrize(("words", "status"), [(["exit 0"], 0), (["exit 3"], 3), (["kill -9 $$"], 137)])
def test_the_status_is_that_of_the_host_that_failed(words: list[str], status: int) -> None:
    command = [sys.executable, "-m", "dist_trainer.launch.launchers.over_ssh", "localhost:1", "--", "sh", "-c", *words]
    assert subprocess.run(command, cwd=ROOT, check=False, timeout=60).returncode == status
