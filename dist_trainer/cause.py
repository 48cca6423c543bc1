"""Why a rank ends, as it tells its guard: one JSON line on a pipe that the guard opened for it.

A rank that has told its guard prints nothing itself. The launching process hears from all ranks and prints one cause.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

# Environment variable of a rank that has a guard: the pipe's file descriptor.
CAUSE_FD = "DIST_TRAINER_CAUSE_FD"
# A message may quote any amount of a user's text, and a traceback may follow.
_MAX_NUM_CHARS = 20_000


@dataclass(frozen=True)
class Cause:
    """`text` is for people. `may_be_echo`: this rank may only have noticed that another rank had failed. `is_stop`: it
    did not fail, but the run was told to stop, and all its ranks do.
    """

    text: str
    may_be_echo: bool
    is_stop: bool = False


def has_guard(environ: Mapping[str, str]) -> bool:
    return _descriptor(environ) is not None


def tell_guard(cause: Cause, environ: Mapping[str, str]) -> bool:
    """True if there is a guard and it was told."""
    descriptor = _descriptor(environ)
    if descriptor is None:
        return False
    line = json.dumps(asdict(replace(cause, text=cause.text[-_MAX_NUM_CHARS:]))) + "\n"
    try:
        os.write(descriptor, line.encode())
    except OSError:
        return False
    return True


def read_cause(line: bytes) -> Cause | None:
    """None if the line is not a complete one of `tell_guard`."""
    try:
        told = json.loads(line)
        cause = Cause(told["text"], told["may_be_echo"], told["is_stop"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    is_sound = isinstance(cause.text, str) and isinstance(cause.may_be_echo, bool) and isinstance(cause.is_stop, bool)
    return cause if is_sound else None


def _descriptor(environ: Mapping[str, str]) -> int | None:
    """None also if the number is no pipe: a program started by a rank inherits the variable but not the descriptor."""
    number = environ.get(CAUSE_FD, "")
    if not number.isascii() or not number.isdigit():
        return None
    try:
        return int(number) if stat.S_ISFIFO(os.fstat(int(number)).st_mode) else None
    except OSError:
        return None
