"""Each way in which a person starts the program: the installed command, the module, and streams that a shell closed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

import pytest

import dist_trainer
from dist_trainer.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
CONSOLE = (str(Path(sysconfig.get_path("scripts"), "dist-trainer")),)
# What pip's script does, from what the wheel says of it.
DECLARED = (
    sys.executable,
    "-c",
    "import sys; from importlib.metadata import distribution as d; "
    "sys.exit(next(e for e in d('dist-trainer').entry_points if e.name == 'dist-trainer').load()())",
)
MODULE = (sys.executable, "-m", "dist_trainer")
ENTRIES = pytest.mark.parametrize("entry", [CONSOLE, DECLARED, MODULE], ids=["console", "declared", "module"])


def start(
    entry: Sequence[str], *words: str, cwd: Path, closed: Sequence[int] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(cwd), "CUDA_VISIBLE_DEVICES": "", **variables}
    # A shell closes what is asked, and no library of ours is in between.
    shell = ("sh", "-c", f'exec "$@" {" ".join(f"{number}>&-" for number in closed)}', "sh", *entry)
    return subprocess.run(
        [*shell, *words], cwd=cwd, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def test_the_wheel_installs_one_command() -> None:
    names = [one.name for one in distribution("dist-trainer").entry_points if one.group == "console_scripts"]
    assert names == ["dist-trainer"]


@ENTRIES
def test_every_entry_point_answers_and_has_the_status_of_the_command(entry: Sequence[str], tmp_path: Path) -> None:
    answer = start(entry, "--version", cwd=tmp_path)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, f"{dist_trainer.__version__}\n", "")
    answer = start(entry, "launch", "--dry-run", "--nproc-per-node", "3", cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "--nproc-per-node=3" in answer.stdout
    answer = start(entry, "plam", cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "did you mean 'plan'?" in answer.stderr


@ENTRIES
def test_the_first_word_of_each_command_is_the_same(entry: Sequence[str], tmp_path: Path) -> None:
    answer = start(entry, "--help", cwd=tmp_path)
    assert answer.returncode == 0
    assert all(f"\n  {name} " in answer.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("slurm", "sumbit"), "did you mean 'submit'?"),
        (("slurm",), "expected: submit, status, lint"),
        (("data", "prepar"), "did you mean 'prepare'?"),
        (("data",), "expected: prepare"),
        (("benchmark", "memroy"), "did you mean 'memory'?"),
        (("benchmark",), "expected: memory, plan-error"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_word_after_a_command_is_named_with_its_nearest(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    answer = start(MODULE, *words, cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert said in answer.stderr
    assert answer.stderr.count("\n") <= 5


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_streams_that_are_closed_are_no_trouble(tmp_path: Path, closed: tuple[int, ...]) -> None:
    answer = start(MODULE, "launch", "--dry-run", cwd=tmp_path, closed=closed)
    assert (answer.returncode, answer.stderr) == (0, "")
    answer = start(MODULE, "plam", cwd=tmp_path, closed=closed)
    assert answer.returncode == 2
    assert ("did you mean" in answer.stderr) == (2 not in closed)
