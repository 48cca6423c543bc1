"""When a process started, which with its id tells it from any other of its PID namespace."""

from __future__ import annotations

from pathlib import Path


def started_ticks(pid: int) -> int | None:
    """In clock ticks since the boot, which no clock that is set changes; None where there is no such process, or only
    its status is left.
    """
    try:
        fields = Path("/proc", str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # proc(5): the state is field 3, the first behind the name, and the start is field 22.
    return None if fields[0] in "ZX" else int(fields[19])
