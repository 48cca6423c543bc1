"""A new file that is written past the page cache: the disk takes it from one small buffer.

Through the cache, a save of gigabytes takes as many of the host's memory, which the training and its token files want,
and costs the cores that train another copy and the finding of free pages.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path
from typing import Any

from dist_trainer.units import MIB

# Written at a time: enough for a disk, and little beside any model.
BLOCK_BYTES = 8 * MIB


class UncachedFile:
    """A new file, open for writing. Where its file system has no direct writes (O_DIRECT), the cache is used.

    Raises OSError, as each of its methods does.
    """

    def __init__(self, path: Path) -> None:
        # Direct writes need memory, places and lengths that are whole pages: a mapping is.
        self._memory = mmap.mmap(-1, BLOCK_BYTES)
        self._buffer = _as_array(self._memory)
        self._num_filled = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)
        self._set_direct(True)

    def __enter__(self) -> UncachedFile:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def write(self, content: memoryview) -> None:
        """Appends `content`, of which some may stay in the buffer for now."""
        rest = _as_array(content)
        while rest.size:
            count = min(rest.size, BLOCK_BYTES - self._num_filled)
            self._buffer[self._num_filled : self._num_filled + count] = rest[:count]
            self._num_filled += count
            rest = rest[count:]
            if self._num_filled == BLOCK_BYTES:
                self._write_out()

    def finish(self) -> None:
        """Writes what is left, and waits until the disk has it all."""
        # The end of a file is no whole page.
        self._set_direct(False)
        self._write_out()
        os.fsync(self._descriptor)

    def _write_out(self) -> None:
        left = memoryview(self._memory)[: self._num_filled]
        self._num_filled = 0
        while left.nbytes:
            try:
                left = left[os.write(self._descriptor, left) :]
            except OSError as error:
                # Some file systems open a file for direct writes, and take none; or less than a page of one.
                if error.errno != errno.EINVAL or not self._is_direct:
                    raise
                self._set_direct(False)

    @property
    def _is_direct(self) -> bool:
        return bool(fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & os.O_DIRECT)

    def _set_direct(self, value: bool) -> None:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & ~os.O_DIRECT
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if value else flags)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise


def _as_array(content: mmap.mmap | memoryview) -> Any:
    """Bytes that are copied without holding up this process's other threads."""
    # Imported here, because `launch` reads checkpoints' indices without it.
    import numpy as np

    return np.frombuffer(content, np.uint8)
