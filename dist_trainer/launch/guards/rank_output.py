"""A rank's output, and its own word on why it ends, as its guard reads them."""

from __future__ import annotations

import codecs
import contextlib
import os
import selectors
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from dist_trainer.cause import Cause, read_cause
from dist_trainer.logs import rank_log_path

_NUM_LAST_LINES = 20
_BLOCK_BYTES = 1 << 16


class RankOutput:
    """Reads a rank's pipes, which it registers with `selector`. Output goes to the rank's log, and to `pass_on` (text,
    whether it is stderr's); if `pass_on` is None, the last lines are kept in `last_lines`.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        stdout: IO[bytes] | None,
        stderr: IO[bytes] | None,
        causes: IO[bytes],
        log: IO[bytes] | None,
        pass_on: Callable[[str, bool], None] | None,
    ) -> None:
        self.last_lines: deque[str] = deque(maxlen=_NUM_LAST_LINES)
        self._selector, self._causes, self._log, self._pass_on = selector, causes, log, pass_on
        self._streams = [(pipe, pipe is stderr) for pipe in (stdout, stderr) if pipe is not None]
        # A block may end within a character; bytes that are not UTF-8 are passed on unchanged.
        self._decoders = [codecs.getincrementaldecoder("utf-8")(errors="surrogateescape") for _ in range(2)]
        # Causes received so far, complete only when the rank has ended.
        self._told = b""
        for pipe in (*(stream for stream, _ in self._streams), causes):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ)

    @property
    def cause(self) -> Cause | None:
        """The first cause that the rank has told."""
        return read_cause(self._told.partition(b"\n")[0])

    def read(self) -> None:
        """Reads everything that is there, without waiting."""
        for data in self._blocks(self._causes):
            self._told += data
        for pipe, is_error in self._streams:
            for data in self._blocks(pipe):
                self._take(data, is_error)

    def _blocks(self, pipe: IO[bytes]) -> Iterator[bytes]:
        while data := pipe.read(_BLOCK_BYTES):
            yield data
        if data == b"":
            with contextlib.suppress(KeyError):
                self._selector.unregister(pipe)

    def _take(self, data: bytes, is_error: bool) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.write(data)
        text = self._decoders[is_error].decode(data)
        if self._pass_on is not None:
            self._pass_on(text, is_error)
        else:
            self.last_lines.extend(text.splitlines())


def open_log(run_dir: Path, rank: int) -> IO[bytes] | None:
    """None if the folder cannot be written: the rank will find that out, and can say so."""
    path = rank_log_path(run_dir, rank)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)
    return None
