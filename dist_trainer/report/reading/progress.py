"""How far a run has come, from its events: under way, finished, failed, or silent."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dist_trainer.records import Event
from dist_trainer.units import format_duration

State = Literal["finished", "running", "failed", "silent"]

# Longer than a checkpoint of a large model takes; a run that steps more slowly has 20 of its steps.
SILENCE_S = 600.0
SILENCE_STEPS = 20


@dataclass(frozen=True)
class Progress:
    """`step` is the last one that was recorded, None where there are no steps. `ended_s` is None while it goes on.

    `text` is for a person: "finished at step 150", "running, step 12", or what went wrong. Times are since the epoch.
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
    step_s: float | None,
    last_record_s: float | None,
    now_s: float | None = None,
) -> Progress:
    """The state since the last start. `last_record_s` is when anything was last recorded, `step_s` a step's length."""
    starts = [index for index, event in enumerate(events) if event.kind == "start"]
    current = events[starts[-1] :] if starts else events
    errors = [event for event in current if event.kind == "error"]
    ends = [event for event in current if event.kind == "end"]
    started_s = events[starts[0]].time_s if starts else None
    known = [time_s for time_s in (last_record_s, events[-1].time_s if events else None) if time_s is not None]
    last_s = max(known, default=None)
    at_step = "" if step is None else f" at step {step}"
    state: State = "running"
    ended_s = error = None
    if errors:
        state, ended_s, error = "failed", errors[0].time_s, errors[0].message
        text = f"failed{at_step}: {error.splitlines()[0] if error else 'no reason was given'}"
    elif ends:
        state, ended_s = "finished", ends[-1].time_s
        status = ends[-1].facts.get("status")
        text = f"finished{at_step}" if status is None else f"the command ended with status {status}"
    else:
        text = "running" + ("" if step is None else f", step {step}")
        silence_s = None if last_s is None else (time.time() if now_s is None else now_s) - last_s
        if last_s is None:
            text += "; nothing is recorded yet"
        elif silence_s is not None and silence_s > max(SILENCE_S, SILENCE_STEPS * (step_s or 0.0)):
            state = "silent"
            text = (
                f"no end is recorded{at_step}, and nothing for {format_duration(silence_s)}: "
                "it was killed, it stands still, or the folder is a copy of a run under way"
            )
    return Progress(state, step, started_s, ended_s, last_s, error, text)
