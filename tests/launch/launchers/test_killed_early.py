"""`kill -9` of `launch` before its guards have connected: nothing of any launcher waits for what will not come."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.integration

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
LIMIT_S = 60
# What a guard itself waits for, and the imports of a launcher that is on its way, on a machine that is busy.
GONE_WITHIN_S = 60
LAUNCHERS = (
    "torchrun",
    "deepspeed",
    pytest.param("mpirun", marks=pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here")),
)
_RANKS = ("RANK=", "OMPI_COMM_WORLD_RANK=")


def marked(mark: str) -> dict[int, list[str]]:
    """The processes that have the mark among their variables, with these."""
    found = {}
    for process in psutil.process_iter():
        try:
            environ = Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace").split("\0")
            if f"MARK={mark}" in environ and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = environ
        except (OSError, psutil.NoSuchProcess):
            continue
    return found


def wait_until(is_so: Callable[[], bool], limit_s: float, what: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline_s, what()
        time.sleep(0.1)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("moment", ["the launcher is there", "it has started something", "the guards are there"])
def test_nothing_is_left(launcher: str, moment: str, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    words = [f"--launcher={launcher}", "--nproc-per-node=2", "--", str(tmp_path), "wait"]
    process = subprocess.Popen(
        [sys.executable, "-m", "launch_echo", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]), "MARK": mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def guards() -> list[int]:
        return [pid for pid, environ in marked(mark).items() if any(line.startswith(_RANKS) for line in environ)]

    try:
        num_processes = 3 if moment == "it has started something" else 2
        wait_until(lambda: len(marked(mark)) >= num_processes, LIMIT_S, lambda: "nothing was started")
        if moment == "the guards are there":
            # It answers none of them.
            process.send_signal(signal.SIGSTOP)
            wait_until(lambda: len(guards()) >= 2, LIMIT_S, lambda: "no guards were started")
    finally:
        process.kill()
        process.wait()
    try:
        wait_until(lambda: not marked(mark), GONE_WITHIN_S, lambda: [*map(_command, marked(mark))])
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
