"""A search shows how far it is on a terminal, and there alone."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from dist_trainer.cli.progress import counting


def test_nothing_is_counted_where_it_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("settings planned", enabled=False) as count:
        count()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_search_counts_its_plans_on_a_terminal(is_terminal: bool, tmp_path: Path) -> None:
    shape = ("--set", "model.num_layers=1", "--set", "model.hidden_size=64", "--set", "model.vocab_size=512")
    command = (sys.executable, "-m", "dist_trainer", "plan", "--config", "tiny", "--ds", "zero2", *shape)
    searched = (*command, "--fit", "--gpu", "a100-40g", "--nproc-per-node", "2", "--global-batch", "4")
    environ = {**os.environ, "TERM": "xterm", "XDG_CACHE_HOME": str(tmp_path)}
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    done = subprocess.run(searched, env=environ, stdout=subprocess.PIPE, stderr=theirs, check=False)
    os.close(theirs)
    shown = os.read(ours, 2**20)
    os.close(ours)
    assert done.returncode == 0, shown
    assert b"settings planned" not in done.stdout
    assert (b"settings planned" in shown) == is_terminal
    assert is_terminal or shown == b""
