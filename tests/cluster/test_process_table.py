from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from dist_trainer.cluster.process_table import list_descendants, monotonic_s, started_ticks

# prctl(2): PR_SET_NAME.
NAMED = "import ctypes, sys; ctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0); print(flush=True); sys.stdin.read()"


@pytest.fixture(params=[b"caf\xe9 \xff", b"a) Z 1 (", b""], ids=repr)
def named(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """A process under a name that it gave itself."""
    command = [sys.executable, "-c", NAMED.format(name=request.param)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_process_may_have_any_name(named: subprocess.Popen[bytes]) -> None:
    (found,) = [process for process in list_descendants(os.getpid()) if process.pid == named.pid]
    assert (found.parent_pid, found.has_ended) == (os.getpid(), False)
    assert found.started_ticks > 0


def test_ticks_are_told_as_the_monotonic_clock_counts() -> None:
    before_s = time.monotonic()
    with subprocess.Popen(["sleep", "60"]) as process:
        ticks = started_ticks(process.pid)
        process.kill()
    assert ticks is not None
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    found_s, same_s = monotonic_s([ticks, ticks])
    assert before_s - 2 * tick_s <= found_s <= time.monotonic() + tick_s
    assert same_s == found_s
