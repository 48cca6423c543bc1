"""Why a rank ends, as it tells its guard: a JSON line on a pipe that the guard has opened for it.

A rank that has told its guard says nothing itself. The launching process hears of every rank, and says one cause.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass

# The descriptor of the pipe, in the environment of a rank that has a guard.
CAUSE_FD = "DIST_TRAINER_CAUSE_FD"
# A message may quote what a user wrote, of any length, and be followed by a traceback.
_MAX_NUM_CHARS = 20_000


@dataclass(frozen=True)
class Cause:
    """`text` is for a person. `may_be_echo`: what stopped another rank may be what this one noticed."""

    text: str
    may_be_echo: bool


def has_guard(environ: Mapping[str, str]) -> bool:
    return _descriptor(environ) is not None


def tell_guard(cause: Cause, environ: Mapping[str, str]) -> bool:
    """Whether there is a guard, and it was told."""
    descriptor = _descriptor(environ)
    if descriptor is None:
        return False
    line = json.dumps(asdict(Cause(cause.text[-_MAX_NUM_CHARS:], cause.may_be_echo))) + "\n"
    try:
        os.write(descriptor, line.encode())
    except OSError:
        return False
    return True


def read_cause(line: bytes) -> Cause | None:
    """None for what is no whole line of `tell_guard`."""
    try:
        told = json.loads(line)
        text, may_be_echo = told["text"], told["may_be_echo"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return Cause(text, may_be_echo) if isinstance(text, str) and isinstance(may_be_echo, bool) else None


def _descriptor(environ: Mapping[str, str]) -> int | None:
    """None too where the number is no pipe: a program that a rank started has the variable and not the descriptor."""
    number = environ.get(CAUSE_FD, "")
    if not number.isascii() or not number.isdigit():
        return None
    try:
        return int(number) if stat.S_ISFIFO(os.fstat(int(number)).st_mode) else None
    except OSError:
        return None
