"""The processes below this one, as the Linux kernel shows them, and the two promises asked of it about them."""

from __future__ import annotations

import ctypes
import os
import signal
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Process:
    """One process; `has_ended` when all that is left of it is its exit status."""

    pid: int
    parent_pid: int
    has_ended: bool


def adopt_orphans(wanted: bool) -> None:
    """Whether a process whose parent ends becomes a child of this one, instead of the init process's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(wanted))


def end_with_parent(parent_pid: int) -> None:
    """Has the kernel send this process SIGTERM when its parent ends; at once when that has happened already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGTERM)


def list_descendants(pid: int) -> list[Process]:
    """Every process below `pid`, parents before children."""
    children: dict[int, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The name in parentheses may hold anything; behind the last one stand the state and the parent.
        state, parent_pid = stat.rpartition(")")[2].split()[:2]
        process = Process(int(entry.name), int(parent_pid), has_ended=state in "ZX")
        children.setdefault(process.parent_pid, []).append(process)
    found = list(children.get(pid, ()))
    for descendant in found:
        found.extend(children.get(descendant.pid, ()))
    return found


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
