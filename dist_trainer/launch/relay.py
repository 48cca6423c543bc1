"""A pipe to whoever reads what `launch` prints, that never breaks: mpirun ends its ranks when nobody reads any more.

A terminal and a file do not end so, and the launcher has them directly.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from dist_trainer.streams import write_all

_BLOCK_BYTES = 1 << 16
# What the launcher left behind may hold the pipe open.
_DRAIN_LIMIT_S = 2.0


@contextmanager
def relayed(descriptor: int) -> Iterator[IO[bytes] | None]:
    """What to write to in place of the descriptor; None where that needs nothing. All has been passed on at the end."""
    if not _may_break(descriptor):
        yield None
        return
    read_fd, write_fd = os.pipe()
    # The signals are the main thread's to wait for: the new thread inherits this mask.
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    thread = threading.Thread(target=_pass_on, args=(read_fd, descriptor), name="relay", daemon=True)
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
    try:
        with os.fdopen(write_fd, "wb", buffering=0) as file:
            yield file
    finally:
        thread.join(_DRAIN_LIMIT_S)


def _may_break(descriptor: int) -> bool:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _pass_on(read_fd: int, descriptor: int) -> None:
    """To the end of the pipe, also when nobody takes it any more."""
    while data := os.read(read_fd, _BLOCK_BYTES):
        write_all(descriptor, data)
    os.close(read_fd)
