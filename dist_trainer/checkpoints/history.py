"""What a run's records say, over all its starts, of failures and of what its saves took.

No clock of one start is compared with another's: time is that of the steps, which each start measured by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.checkpoints.cadence import Failures, Save
from dist_trainer.endings import ERROR, cause_among
from dist_trainer.records import EVENTS_FILE, STEPS_FILE, Event, StepRecord, read_records


@dataclass(frozen=True)
class History:
    """`saves`: those within phases, in order."""

    failures: Failures
    saves: tuple[Save, ...] = ()


def history(records_dir: Path) -> History:
    """Of all starts before the last one, which is the one that asks."""
    earlier = list(_starts(records_dir / EVENTS_FILE))[:-1]
    trained_s = sum(record.step_s for record in read_records(records_dir / STEPS_FILE, StepRecord))
    return History(
        Failures(sum(map(_failed, earlier)), trained_s),
        tuple(
            Save(event.facts["cost_s"], event.facts["seconds"])
            for start in earlier
            for event in start
            if event.kind == "checkpoint" and {"cost_s", "seconds"} <= event.facts.keys()
        ),
    )


def _starts(path: Path) -> Iterator[Sequence[Event]]:
    """The events of each start, in the order of the file."""
    events: list[Event] = []
    for event in read_records(path, Event):
        if event.kind == "start" and events:
            yield events
            events = []
        events.append(event)
    if events:
        yield events


def _failed(events: Sequence[Event]) -> bool:
    """Whether a start that had begun to train ended by an error, or without a word, as one that was killed.

    One that a signal ended is no failure: somebody chose that moment, as SLURM does at a job's time limit.
    """
    kinds = {event.kind for event in events}
    if "phase" not in kinds or "end" in kinds:
        return False
    cause = cause_among(events)
    return cause is None or cause.kind == ERROR
