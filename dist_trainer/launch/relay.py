"""A pipe between the launcher and the reader of `launch`'s output that never breaks, because mpirun ends its ranks when
their output has no reader any more.

Terminals and files cannot lose their reader, so the launcher gets those directly.
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
# Processes that the launcher left behind may hold the pipe open for longer.
_DRAIN_LIMIT_S = 2.0


@contextmanager
def relayed(descriptor: int) -> Iterator[IO[bytes] | None]:
    """A file to write to in place of the descriptor; None if that is safe itself. On exit everything was passed on."""
    if not _may_break(descriptor):
        yield None
        return
    read_fd, write_fd = os.pipe()
    # The main thread waits for signals: the new thread inherits a mask that blocks them all.
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
    """Reads the pipe to its end, even after its reader is gone."""
    while data := os.read(read_fd, _BLOCK_BYTES):
        write_all(descriptor, data)
    os.close(read_fd)
