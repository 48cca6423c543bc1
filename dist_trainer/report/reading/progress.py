"""The state of a run, from its events: running, finished, failed, interrupted, or silent."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dist_trainer.endings import INTERRUPTED, cause_among
from dist_trainer.records import Event
from dist_trainer.units import format_duration

State = Literal["finished", "running", "failed", "interrupted", "silent"]

# After this long without a record a reader is told so: longer than the checkpoint of a large model takes.
_LONG_S = 600.0


@dataclass(frozen=True)
class Progress:
    """`step` is the last recorded one, None if there is none. `ended_s` is None while the run goes on.

    `text` is for people: "finished at step 150", "running, step 12", or what went wrong. Times are since the epoch.
    `error` is the message of what made the run fail or interrupted it.
    """

    state: State
    step: int | None
    started_s: float | None
    ended_s: float | None
    last_record_s: float | None
    error: str | None
    text: str

    @property
    def is_final(self) -> bool:
        return self.state == "finished"


def progress(
    events: Sequence[Event],
    *,
    step: int | None,
    last_record_s: float | None,
    is_written: bool | None = None,
    now_s: float | None = None,
) -> Progress:
    """The state since the last start. `events` are in the order in which they were written; `last_record_s` is the time
    of the last record of any kind. `is_written` says whether the run's process lives, None if that cannot be known: a
    run without a recorded end then counts as running, and `text` says for how long nothing was recorded.
    """
    starts = [index for index, event in enumerate(events) if event.kind == "start"]
    current = events[starts[-1] :] if starts else events
    cause = cause_among(current)
    ends = [event for event in current if event.kind == "end"]
    started_s = events[starts[0]].time_s if starts else None
    known = [time_s for time_s in (last_record_s, events[-1].time_s if events else None) if time_s is not None]
    last_s = max(known, default=None)
    at_step = "" if step is None else f" at step {step}"
    state: State = "running"
    ended_s = error = None
    if cause is not None:
        ended_s, error = cause.time_s, cause.message
        first_line = error.splitlines()[0] if error else "no reason was given"
        if cause.kind == INTERRUPTED:
            state, text = "interrupted", first_line
        else:
            state, text = "failed", f"failed{at_step}: {first_line}"
    elif ends:
        state, ended_s = "finished", ends[-1].time_s
        status = ends[-1].facts.get("status")
        text = f"finished{at_step}" if status is None else f"the command ended with status {status}"
    elif is_written is False:
        state = "silent"
        text = f"no end is recorded{at_step}, and nothing writes any more: it was killed, or the folder is a copy"
    else:
        text = "running" + ("" if step is None else f", step {step}")
        silence_s = None if last_s is None else (time.time() if now_s is None else now_s) - last_s
        if silence_s is None:
            text += "; nothing is recorded yet"
        elif is_written is None and silence_s > _LONG_S:
            text += (
                f"; nothing was recorded for {format_duration(silence_s)}, and whether it still runs cannot be seen "
                "from here"
            )
    return Progress(state, step, started_s, ended_s, last_s, error, text)
