"""How a rank fails: one cause is reported, all ranks end within seconds, and none waits for another's work.

A rank that `launch` started tells its guard; `launch`, which hears from all ranks, reports one cause. Ranks that
another launcher started agree through records/events.jsonl: the first error event since the start is the cause, and the
rank that writes it reports it, while the others wait for that. A rank whose error may be only the echo of another's (a
lost connection) lets the others go first.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from dist_trainer.cause import Cause, has_guard, tell_guard
from dist_trainer.cluster.slurm import slurm_facts
from dist_trainer.encoding import printable
from dist_trainer.endings import ERROR, INTERRUPTED, Start, end_event, interrupted
from dist_trainer.errors import EXIT_FAILURE, EXIT_INTERRUPTED, UserError
from dist_trainer.logs import LOGGER_NAME
from dist_trainer.streams import SHOW_CURSOR, is_terminal, write_all

ECHO_GRACE_S = 1.0
SAME_MISTAKE_GRACE_S = 5.0

_is_failing = threading.Event()
# Set when a rank that is giving others time to report first has to end at once.
_hurry = threading.Event()


@dataclass(frozen=True)
class Speaker:
    """A rank in the run, and where it reports. `stderr_fd`: the original stderr, such as the terminal, also after
    sys.stderr was redirected to a file.
    """

    rank: int
    start: Start
    stderr_fd: int
    debug: bool


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


def say(text: str, *, stream_fd: int = 2) -> None:
    write_all(stream_fd, f"{printable(text)}\n".encode())


def fail_before_meeting(
    error: BaseException, *, rank: int, debug: bool, run_dir: Path | None = None, stderr_fd: int = 2
) -> NoReturn:
    """Ends a rank that has not joined the others yet, or that cannot reach the run's folder.

    What stopped it has probably stopped every rank (a mistake in a file, a missing data set). Without guards rank 0
    reports, and its end makes the launcher end the others; a rank that is still alive after a grace period was the only
    one to fail, and reports too. `run_dir`: the folder named on the command line.
    """
    if not tell_guard(Cause(_with_traceback(error, debug=debug), may_be_echo=False), os.environ):
        if rank > 0 and _hurry.wait(SAME_MISTAKE_GRACE_S):
            # The launcher ends this rank because another one has ended, and has reported the cause.
            os._exit(exit_status(error))
        say(_line(error, rank, debug=debug), stream_fd=stderr_fd)
        _record(error, rank, None if run_dir is None else Start.now(run_dir))
    os._exit(exit_status(error))


def fail_in_the_run(error: BaseException, speaker: Speaker) -> NoReturn:
    """Ends a rank after it has joined the others, without any collective."""
    _is_failing.set()
    logging.getLogger(LOGGER_NAME).error("".join(traceback.format_exception(error)))
    may_be_echo = not isinstance(error, UserError)
    if may_be_echo:
        _hurry.wait(ECHO_GRACE_S)
    told = tell_guard(Cause(_with_traceback(error, debug=speaker.debug), may_be_echo), os.environ)
    try:
        with speaker.start.speaking():
            if not told and not speaker.start.has_end():
                if is_terminal(speaker.stderr_fd):
                    # The cursor may be within the line of rank 0's progress bar.
                    write_all(speaker.stderr_fd, b"\n")
                say(_line(error, speaker.rank, debug=speaker.debug), stream_fd=speaker.stderr_fd)
            _record(error, speaker.rank, speaker.start)
    except OSError:
        # The run's folder is gone, so the ranks cannot agree through events.jsonl.
        if not told:
            fail_before_meeting(error, rank=speaker.rank, debug=speaker.debug, stderr_fd=speaker.stderr_fd)
    sys.stdout.flush()
    logging.shutdown()
    os._exit(exit_status(error))


def end_before_meeting_by_signal(number: signal.Signals, rank: int) -> None:
    """Ends a rank that has not joined the others yet. Called on another thread than the one that prepares."""
    _hurry.set()
    if _is_failing.is_set():
        return
    if rank == 0 and not has_guard(os.environ):
        say(f"dist_trainer: interrupted before the first step ({number.name})")
    os._exit(128 + number)


def announce_stop(within_s: float, speaker: Speaker, *, saves: bool) -> None:
    """Rank 0 says that the run ends, and whether it saves."""
    if speaker.rank > 0:
        return
    if is_terminal(speaker.stderr_fd):
        write_all(speaker.stderr_fd, b"\n")
    what = "saves and ends" if saves else "ends"
    text = f"told to stop: the run {what}, within {within_s:g} s; a second signal ends it at once"
    say(f"dist_trainer: {text}", stream_fd=speaker.stderr_fd)


def end_by_signal(number: signal.Signals, speaker: Speaker) -> None:
    """Ends a rank that a signal told to end, where it has saved what it could; or at once, called on another thread
    than the training's, which may be stuck in a collective. If the rank is failing already, this only ends its waiting
    for others.
    """
    _hurry.set()
    if _is_failing.is_set():
        return
    if tell_guard(Cause(f"stopped by {number.name}", may_be_echo=False, is_stop=True), os.environ):
        os._exit(128 + number)
    if speaker.rank == 0 and is_terminal(1):
        write_all(1, SHOW_CURSOR.encode())
    try:
        with speaker.start.speaking():
            if not speaker.start.has_end():
                message, facts = interrupted(speaker.start, number.name)
                say(f"dist_trainer: {message}", stream_fd=speaker.stderr_fd)
                event = end_event(INTERRUPTED, message, speaker.rank, **facts, **slurm_facts(os.environ))
                speaker.start.write(event)
    except OSError:
        say(f"dist_trainer: rank {speaker.rank} was ended by {number.name}", stream_fd=speaker.stderr_fd)
    os._exit(128 + number)


def _line(error: BaseException, rank: int, *, debug: bool) -> str:
    text = describe(error)
    line = f"dist_trainer: error: {f'rank {rank}: ' if rank > 0 else ''}{text}"
    return "".join(traceback.format_exception(error)) + line if debug else line


def _with_traceback(error: BaseException, *, debug: bool) -> str:
    text = describe(error)
    return f"{text}\n{''.join(traceback.format_exception(error)).rstrip()}" if debug else text


def _record(error: BaseException, rank: int, start: Start | None) -> None:
    if start is None or not (start.run_dir / "records").is_dir():
        return
    try:
        facts = slurm_facts(os.environ)
        start.write(end_event(ERROR, describe(error), rank, type=type(error).__name__, **facts))
    except OSError:
        # The cause was reported, or the guard knows it: a full or missing disk must not keep the rank from ending.
        logging.getLogger(LOGGER_NAME).warning("the end cannot be recorded", exc_info=True)
