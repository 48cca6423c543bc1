"""What a launch came to: printed once, and written into the run's events if no rank has written it."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from dist_trainer.cluster.slurm import is_at_time_limit, slurm_facts
from dist_trainer.encoding import printable
from dist_trainer.errors import EXIT_TARGET_MISSED
from dist_trainer.launch.guards.membership import Trouble
from dist_trainer.streams import SHOW_CURSOR


class RunRecord:
    """The events of one start of a run. To be made before the ranks start, because it notes where events.jsonl ends."""

    def __init__(self, run_dir: Path) -> None:
        from dist_trainer.endings import Start

        self._start = Start.now(run_dir)

    def interrupted(self, number: signal.Signals, why: str) -> str:
        """Writes that this signal ended the run, and `why`; returns what is to be said."""
        from dist_trainer.endings import INTERRUPTED, end_event, interrupted

        message, facts = interrupted(self._start, number.name)
        message += why
        with suppress(OSError):
            self._start.write(end_event(INTERRUPTED, message, None, **facts, **slurm_facts(os.environ)))
        return message

    def failed(self, trouble: Trouble) -> None:
        """Writes the cause, unless the rank itself has already written it."""
        from dist_trainer.endings import ERROR, cause_among, end_event

        said = cause_among(list(self._start.events()))
        if said is not None and trouble.cause is not None and trouble.cause.startswith(said.message):
            return
        facts = {"status": trouble.status, "of_rank": trouble.rank, "host": trouble.host, **slurm_facts(os.environ)}
        with suppress(OSError):
            self._start.write(end_event(ERROR, trouble.cause or "\n    ".join(in_words(trouble)), None, **facts))


def is_at_its_end(trouble: Trouble) -> bool:
    """Whether this is no failure: the run was completed, and rank 0 exits so because --strict is not met."""
    return trouble.rank == 0 and trouble.status == EXIT_TARGET_MISSED and trouble.cause is None


def in_words(trouble: Trouble) -> list[str]:
    """What happened; for a rank that gave no cause, with the last lines of its output."""
    return [f"{trouble.message}; said last:", *trouble.lines] if trouble.lines else [trouble.message]


def say_trouble(trouble: Trouble, *, is_local: bool) -> None:
    restore_terminal(is_local=is_local)
    if trouble.cause is not None:
        where = "" if trouble.rank == 0 else f"rank {trouble.rank}{'' if is_local else f' on {trouble.host}'}: "
        say(f"error: {where}{trouble.cause}")
    else:
        say("\n    ".join(in_words(trouble)))


def say_interrupted(number: signal.Signals, record: RunRecord | None, *, is_local: bool) -> None:
    is_at_limit = number == signal.SIGTERM and is_at_time_limit(os.environ, time.time())
    why = ": SLURM's time limit for the job" if is_at_limit else ""
    if record is None:
        message = f"interrupted before the first step ({number.name}){why}"
    else:
        message = record.interrupted(number, why)
    restore_terminal(is_local=is_local)
    say(message)


def restore_terminal(*, is_local: bool) -> None:
    """Shows the cursor that the progress bar of a rank on this host had hidden, and begins a new line."""
    if is_local and os.isatty(1):
        sys.stdout.write(SHOW_CURSOR)
        sys.stdout.flush()


def say(text: str) -> None:
    # Control characters in another host's text must not reach this terminal.
    print(printable(f"dist_trainer: {text}"), file=sys.stderr, flush=True)
