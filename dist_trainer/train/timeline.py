"""When each stage of a rank's start began: spawn, imports, rendezvous, ..., up to the end of the first step."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dist_trainer import blackbox
from dist_trainer.blackbox import Stage
from dist_trainer.cause import has_guard
from dist_trainer.cluster.environments import LAUNCH_PROCESS
from dist_trainer.cluster.process_table import monotonic_s, started_ticks
from dist_trainer.endings import Start
from dist_trainer.records import START_ENDED, RecordWriter, StageRecord, start_file


class Timeline:
    """The stages of this process's start as a rank. Nothing is written until the run's folder is known (`keep`);
    after that each stage is written as it begins, so that of a rank that is killed it is known in which it was.
    """

    def __init__(self) -> None:
        """`main` has begun."""
        self._moments = [*before_main(os.environ), ("files", time.monotonic())]
        blackbox.own().enter("files")
        self._rank = self._start_id = 0
        self._writer: RecordWriter | None = None

    def begin(self, stage: Stage) -> None:
        """The stage begins, and the one before it ends. Raises OSError if it cannot be written."""
        self._moments.append((stage, time.monotonic()))
        blackbox.own().enter(stage)
        if self._writer is not None:
            self._write(*self._moments[-1])

    def keep(self, start: Start, rank: int) -> None:
        """Writes what there is so far, and from now on each stage, into the run's folder. Raises OSError."""
        self._rank, self._start_id = rank, start.events_size
        self._writer = RecordWriter(start.run_dir / "records" / start_file(rank))
        for stage, at_s in self._moments:
            self._write(stage, at_s)

    def keep_of_failed(self, run_dir: Path | None, rank: int) -> None:
        """As `keep`, for a rank that fails before it has met the others. Only where `launch` holds the folder for its
        ranks: the folder of a rank without a guard may be another run's.
        """
        if self._writer is None and run_dir is not None and has_guard(os.environ) and run_dir.is_dir():
            with suppress(OSError):
                self.keep(Start.now(run_dir), rank)

    def end(self, *, compile_s: float | None = None) -> None:
        """The first step has ended; torch.compile took `compile_s` of it."""
        self._write(START_ENDED, time.monotonic(), compile_s=compile_s)
        assert self._writer is not None
        self._writer.close()

    def _write(self, stage: str, at_s: float, *, compile_s: float | None = None) -> None:
        assert self._writer is not None
        self._writer.write(
            StageRecord(stage, self._rank, socket.gethostname(), at_s, self._start_id, os.getpid(), compile_s)
        )


def before_main(environ: Mapping[str, str]) -> list[tuple[str, float]]:
    """The stages that this process cannot see itself, by when processes were created (to a hundredth of a second).

    "launch", from the start of `launch` to that of the rank's guard, only on the host of `launch`; "guard", until the
    guard forked the rank; "spawn".
    """
    pid, _, ticks = environ.get(LAUNCH_PROCESS, "").partition(":")
    processes: list[tuple[str, int | None]] = []
    if pid.isascii() and pid.isdigit():
        launched = started_ticks(int(pid))
        # On another host, or in another container, there may be a process of this number too.
        processes.append(("launch", launched if str(launched) == ticks else None))
    if has_guard(environ):
        processes.append(("guard", started_ticks(os.getppid())))
    processes.append(("spawn", started_ticks(os.getpid())))
    known = [(stage, created) for stage, created in processes if created is not None]
    moments = monotonic_s([created for _, created in known])
    return [(stage, at_s) for (stage, _), at_s in zip(known, moments, strict=True)]


def compile_s() -> float:
    """The seconds that torch.compile has taken in this process, as dynamo counts them: for frames and backwards."""
    from torch._dynamo.utils import calculate_time_spent

    return calculate_time_spent()["total_wall_time"]
