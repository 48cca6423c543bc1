"""What a rank prints, and why it says it ends, as its guard reads it."""

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
    """Reads a rank's pipes, of which `selector` tells when there is something: to its log, and `pass_on`, with whether
    it is stderr's, or where that is None to `last_lines`.
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
        # A character may come in two pieces; whatever else they are, the bytes go on.
        self._decoders = [codecs.getincrementaldecoder("utf-8")(errors="surrogateescape") for _ in range(2)]
        # Read to its end only when the rank ends.
        self._told = b""
        for pipe in (*(stream for stream, _ in self._streams), causes):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ)

    @property
    def cause(self) -> Cause | None:
        """The first one that the rank has told."""
        return read_cause(self._told.partition(b"\n")[0])

    def read(self) -> None:
        """All that is there, without waiting."""
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
    """None where the folder cannot be written to: the rank, which can say so, is about to find that out."""
    path = rank_log_path(run_dir, rank)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)
    return None
