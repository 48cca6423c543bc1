"""What launchers have put above a process, and what the Linux kernel is asked to do when one ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from dist_trainer.cluster.process_table import look_up, started_ticks

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# What launchers start on each host to start its ranks. When cut off from the others they would keep running.
_DAEMONS = ("orted", "hydra_pmi_proxy")
_MODULES = ("deepspeed.launcher.launch", "dist_trainer.launch.launchers.elastic")
_SWEEP_AFTER_S = 3.0
_SWEEP_POLL_S = 0.1


def adopt_orphans(wanted: bool) -> None:
    """Makes this process (or not) the new parent of descendants whose parent ends, in place of init (a subreaper)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(wanted))


def end_with_parent(parent_pid: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Has the kernel send this process the signal when its parent ends; sends it at once if it already has."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), number)


def show_as(words: Sequence[str]) -> None:
    """Makes ps, top and nvidia-smi show these words as this process's command line, as far as there is room."""
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    # proc(5): arg_start and arg_end are fields 48 and 49; the first field after the name is number 3.
    start, end = int(fields[45]), int(fields[46])
    text = "\0".join(words).encode(errors="surrogateescape")[: end - start - 1]
    if start:
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def launchers_above(pid: int) -> list[tuple[int, int]]:
    """Launchers' helper processes among the ancestors of `pid`, as (process id, start in clock ticks since boot)."""
    found = []
    while pid > 1:
        try:
            words = Path("/proc", str(pid), "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            break
        facts = look_up(pid)
        if facts is None:
            break
        if Path(words[0]).name in _DAEMONS or any(word in _MODULES for word in words):
            found.append((pid, facts.started_ticks))
        pid = facts.parent_pid
    return found


def sweep_later(processes: list[tuple[int, int]]) -> None:
    """Leaves a process behind that ends these processes, unless they end by themselves within _SWEEP_AFTER_S."""
    if not processes or os.fork() > 0:
        return
    os.setsid()
    # Whoever reads this process's output, such as ssh, must not wait for the process left behind.
    os.closerange(0, os.sysconf("SC_OPEN_MAX"))
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline_s = time.monotonic() + _SWEEP_AFTER_S
        while (left := [one for one in processes if started_ticks(one[0]) == one[1]]) and time.monotonic() < deadline_s:
            time.sleep(_SWEEP_POLL_S)
        for pid, _ in left:
            with contextlib.suppress(OSError):
                os.kill(pid, number)
    os._exit(0)


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
