"""How a rank ends badly: one rank says why, all end within seconds, and no rank waits for another.

The first error line in records/events.jsonl is the cause; the rank that wrote it speaks. A rank whose trouble may be
no more than the echo of another's (a lost connection) lets the others write first.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from dist_trainer.encoding import printable
from dist_trainer.errors import EXIT_FAILURE, EXIT_INTERRUPTED, UserError
from dist_trainer.logs import LOGGER_NAME
from dist_trainer.records import EVENTS_FILE, Event, RecordWriter, read_records

ECHO_GRACE_S = 1.0
SAME_MISTAKE_GRACE_S = 5.0


def describe(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text}\n  {'do:':<10}run again with --debug for the traceback"


def exit_status(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return error.exit_status if isinstance(error, UserError) else EXIT_FAILURE


def say(text: str, error: BaseException, *, debug: bool, stream_fd: int = 2) -> None:
    lines = f"dist_trainer: error: {text}\n"
    if debug:
        lines = "".join(traceback.format_exception(error)) + lines
    os.write(stream_fd, printable(lines).encode())


def fail_before_meeting(error: BaseException, *, rank: int, debug: bool) -> NoReturn:
    """Ends a rank that has not joined the others yet.

    What stopped it most likely stopped every rank (a mistake in a file, a missing data set), so rank 0 speaks, and its
    end makes the launcher end the others. A rank still alive after a grace was alone in its trouble, and speaks.
    """
    if rank > 0:
        time.sleep(SAME_MISTAKE_GRACE_S)
    prefix = f"rank {rank}: " if rank > 0 else ""
    say(prefix + describe(error), error, debug=debug)
    os._exit(exit_status(error))


def fail_in_the_run(
    error: BaseException, *, rank: int, run_dir: Path, started_s: float, stderr_fd: int, debug: bool
) -> NoReturn:
    """Ends a rank of a run that is under way, without any collective."""
    logging.getLogger(LOGGER_NAME).error("".join(traceback.format_exception(error)))
    if not isinstance(error, UserError):
        time.sleep(ECHO_GRACE_S)
    events = run_dir / "records" / EVENTS_FILE
    RecordWriter(events).write(
        Event(
            kind="error", message=describe(error), rank=rank, time_s=time.time(), facts={"type": type(error).__name__}
        )
    )
    first = next(event for event in read_records(events, Event) if event.kind == "error" and event.time_s >= started_s)
    if first.rank == rank:
        prefix = f"rank {rank}: " if rank > 0 else ""
        say(prefix + describe(error), error, debug=debug, stream_fd=stderr_fd)
    sys.stdout.flush()
    logging.shutdown()
    os._exit(exit_status(error))
