"""Standard output and error that outlive their reader: `launch ... | head -2` must not end the training.

C libraries need no such help: stdio ignores a failed write, and Python ignores SIGPIPE for the whole process.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

# After a killed progress bar: shows the cursor that it had hidden, and ends its unfinished line.
SHOW_CURSOR = "\x1b[?25h\n"


class _Outliving(io.FileIO):
    """Discards what is written once the reader is gone."""

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except BrokenPipeError:
            write_to_nowhere(self.fileno())
            written = super().write(data)
        return written or 0


def outlive_readers() -> None:
    """Replaces this process's original sys.stdout and sys.stderr; streams that a caller put in their place are kept."""
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        sys.stdout = _outliving(sys.stdout)
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = _outliving(sys.stderr)


def is_terminal(descriptor: int) -> bool:
    """Whether a person sees what is written there. A pseudo terminal of 0 columns does not count: Open MPI gives its
    ranks one even if mpirun's own output goes to a file.
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
    """Writes directly to the descriptor, past Python's buffers, until done or the reader is gone."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except OSError:
            return


def _outliving(stream: TextIO) -> TextIO:
    """The same stream on the same descriptor, with Python's usual buffering."""
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
