"""Standard output and error that outlive their reader: `launch ... | head -2` must not end a training.

What a library of C prints needs nothing of this: a write that fails is forgotten there, and Python ignores SIGPIPE.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

# A progress bar that was killed has hidden it, and left its line unfinished.
SHOW_CURSOR = "\x1b[?25h\n"


class _Outliving(io.FileIO):
    """Writes to nowhere, once nobody reads any more."""

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except BrokenPipeError:
            write_to_nowhere(self.fileno())
            written = super().write(data)
        return written or 0


def outlive_readers() -> None:
    """Replaces this process's own sys.stdout and sys.stderr; what a caller has put in their place is left alone."""
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        sys.stdout = _outliving(sys.stdout)
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = _outliving(sys.stderr)


def is_terminal(descriptor: int) -> bool:
    """Whether somebody looks at it. Open MPI gives its ranks a pseudo terminal, wherever mpirun's own output goes: one
    of 0 columns, as no window is.
    """
    try:
        return os.isatty(descriptor) and os.get_terminal_size(descriptor).columns > 0
    except OSError:
        return False


def write_to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes past Python's own buffers, as far as anybody reads it."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except OSError:
            return


def _outliving(stream: TextIO) -> TextIO:
    """The same stream, on the same descriptor, buffered as Python does it."""
    stream.flush()
    raw = _Outliving(stream.fileno(), "w", closefd=False)
    is_unbuffered = isinstance(getattr(stream, "buffer", None), io.RawIOBase)
    return io.TextIOWrapper(
        raw if is_unbuffered else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )
