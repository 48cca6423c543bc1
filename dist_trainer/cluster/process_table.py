"""The kernel's table of processes: whose child each is, when it started, and whether it has ended."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process; `has_ended` when all that is left is its exit status. `started_ticks` count from the host's boot."""

    pid: int
    parent_pid: int
    has_ended: bool
    started_ticks: int


def look_up(pid: int) -> Process | None:
    """None when there is no such process."""
    try:
        line = Path("/proc", str(pid), "stat").read_bytes()
    except OSError:
        return None
    # The name in parentheses may hold anything; what counts stands behind the last one. proc(5): the state is field 3,
    # the first behind the name, the parent 4, and the start 22.
    fields = line.rpartition(b")")[2].split()
    return Process(pid, int(fields[1]), has_ended=fields[0] in (b"Z", b"X"), started_ticks=int(fields[19]))


def started_ticks(pid: int) -> int | None:
    """When it started, in clock ticks since the boot, which no clock that is set changes: with its id that tells it
    from any other of its PID namespace. None where there is no such process, or only its status is left.
    """
    process = look_up(pid)
    return None if process is None or process.has_ended else process.started_ticks


def monotonic_s(moments: Sequence[int]) -> list[float]:
    """Ticks since the boot as time.monotonic() counts, which does not count the time that the host was suspended.

    To a tick, which is a hundredth of a second; moments of the same tick are the same.
    """
    suspended_s = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return [max(0.0, ticks / os.sysconf("SC_CLK_TCK") - suspended_s) for ticks in moments]


def children_by_parent() -> dict[int, list[Process]]:
    """Every process of this host, under the id of its parent."""
    children: dict[int, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        process = look_up(int(entry.name)) if entry.name.isdigit() else None
        if process is not None:
            children.setdefault(process.parent_pid, []).append(process)
    return children


def list_descendants(pid: int) -> list[Process]:
    """Every process below `pid`, parents before children."""
    children = children_by_parent()
    found = list(children.get(pid, ()))
    for descendant in found:
        found.extend(children.get(descendant.pid, ()))
    return found
