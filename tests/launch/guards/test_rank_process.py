"""A rank as a fork of its guard, and as a program of its own: the rank must not be able to tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# A guard as far as `start_rank` knows: says how the rank was started, what it printed, and how it ended.
GUARD = """\
import json, os, signal, socket, sys, time
from dist_trainer.launch.guards.rank_process import BecomeRank, start_rank

cwd, variables, words = json.loads(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: None)
mine = socket.create_server(("127.0.0.1", 0))
os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)
environ = {**os.environ, **variables}
argv = [sys.executable, "-m", "a_rank", *words]
try:
    causes, cause = os.pipe()
    kept = {"DIST_TRAINER_CAUSE_FD": cause}
    rank = start_rank(argv, cwd, environ, is_captured=True, let_go=mine.close, descriptors=kept)
except BecomeRank as become:
    becoming = become
else:
    while rank.poll() is None:
        time.sleep(0.01)
    said = b"".join(iter(lambda: rank.stdout.read(1 << 16) or b"", b"")).decode()
    print(json.dumps([type(rank).__name__, rank.returncode, said, rank.stderr.read().decode()]), flush=True)
    os._exit(0)
becoming.run()
"""

RANK = """\
import json, os, signal, sys

fds = [fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2 and os.path.exists(f"/proc/self/fd/{fd}")]
handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
print(json.dumps({
    "argv": sys.argv[1:],
    "name": __name__,
    "cwd": os.getcwd(),
    "color": os.environ.get("COLOR"),
    "rank": os.environ.get("RANK"),
    "open": len(fds),
    "handlers": handlers == [signal.SIG_DFL, signal.default_int_handler],
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "leads": os.getsid(0) == os.getpid(),
    "stdin": sys.stdin.read(),
    "cmdline": open("/proc/self/cmdline").read().rstrip("\\0").split("\\0"),
}), flush=True)
if "kill" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a_rank.py").write_text(RANK)
    (tmp_path / "guard.py").write_text(GUARD)
    return tmp_path


def start(folder: Path, *words: str, cwd: Path | None = None, **variables: str) -> tuple[str, int, dict[str, Any], str]:
    told = json.dumps([str(cwd or folder), variables, words])
    process = subprocess.run(
        [sys.executable, "-m", "guard", told],
        cwd=folder,
        env={"PYTHONPATH": f"{folder}:{Path(__file__).parents[3]}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    kind, status, said, wrong = json.loads(process.stdout)
    return kind, status, json.loads(said or "{}"), wrong


def test_a_rank_whose_variables_are_read_late_is_a_fork(folder: Path) -> None:
    kind, status, said, wrong = start(folder, "7", "it's $HOME", "", RANK="3", OMP_NUM_THREADS="2")
    assert (kind, status, wrong) == ("Fork", 7, "")
    assert said == {
        "argv": ["7", "it's $HOME", ""],
        "name": "__main__",
        "cwd": str(folder),
        "color": None,
        "rank": "3",
        # Where it can say why it ends.
        "open": 1,
        "handlers": True,
        "blocked": 0,
        "leads": True,
        "stdin": "",
        "cmdline": ["python", "-m", "a_rank", "7", "it's $HOME"],
    }


@pytest.mark.parametrize("what", ["a variable that Python may have read", "another folder"])
def test_else_it_is_a_program_of_its_own_and_finds_all_as_a_fork_does(what: str, folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    other: dict[str, Any] = {"COLOR": "red"} if what.startswith("a variable") else {"cwd": folder / "elsewhere"}
    kind, status, said, _ = start(folder, "7", "it's $HOME", "", RANK="3", **other)
    assert (kind, status) == ("Popen", 7)
    assert said["cwd"] == str(other.get("cwd", folder))
    assert said["color"] == other.get("COLOR")
    as_fork = start(folder, "7", "it's $HOME", "", RANK="3")[2]
    own = ("cwd", "color", "cmdline")
    assert {key: said[key] for key in said if key not in own} == {
        key: as_fork[key] for key in as_fork if key not in own
    }


@pytest.mark.parametrize("variables", [{}, {"COLOR": "red"}])
def test_a_killed_rank_has_the_signal_as_its_status(variables: dict[str, str], folder: Path) -> None:
    _, status, *_ = start(folder, "0", "kill", **variables)
    assert status == -9


def test_an_error_in_a_forked_rank_is_told_as_anywhere(folder: Path) -> None:
    (folder / "a_rank.py").write_text("raise ValueError('in the rank')\n")
    kind, status, _, wrong = start(folder)
    assert (kind, status) == ("Fork", 1)
    assert wrong.splitlines()[-1] == "ValueError: in the rank"
    assert "During handling" not in wrong
