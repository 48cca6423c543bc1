"""Everything that a run's folder says about the run, read once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.endings import is_written
from dist_trainer.errors import UserError
from dist_trainer.records import EVENTS_FILE, Event, LeftOut, read_records, read_steps
from dist_trainer.report.reading.asked import Asked, read_asked
from dist_trainer.report.reading.measured import History, MemoryHistory, read_memory
from dist_trainer.report.reading.progress import Progress, progress
from dist_trainer.report.reading.starts import RankStart, read_starts
from dist_trainer.report.reading.steps import Steps, steps_of


@dataclass(frozen=True)
class Findings:
    """`marks`: when training phases began, as (seconds since the epoch, name), in order. They are for drawing: they
    stay in order even if the wall clock was set back within a start.

    `starts`: how each rank of the last start came to its first step. `problems`: what could not be read, in words.
    """

    run_dir: Path
    asked: Asked
    events: tuple[Event, ...]
    steps: Steps
    memory: MemoryHistory
    marks: tuple[tuple[float, str], ...]
    progress: Progress
    starts: tuple[RankStart, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def histories(self) -> tuple[History, ...]:
        return self.memory.histories

    @property
    def is_without_steps(self) -> bool:
        """Whether this is a training run that took no step: its peaks then say nothing about training."""
        return self.asked.is_training and not len(self.steps)


def read_findings(run_dir: Path, *, now_s: float | None = None) -> Findings:
    """Reads whatever the folder has; the run may still be going on. Raises UserError if there are no records at all."""
    records_dir = run_dir / "records"
    left_out: LeftOut = {}
    # In the order of the file, which holds even if the wall clock was set back.
    events = list(read_records(records_dir / EVENTS_FILE, Event, left_out))
    steps = steps_of(read_steps(records_dir, left_out))
    marks = tuple(_marks(events))
    starts = [event for event in events if event.kind == "start"]
    edges = [event for event in events if event.kind in ("start", "end")]
    has_ended = bool(edges) and edges[-1].kind == "end"
    memory = read_memory(records_dir, events, phase_starts=steps.phase_starts(), has_ended=has_ended, left_out=left_out)
    starts_of_ranks = read_starts(records_dir, left_out)
    asked = read_asked(run_dir, events)
    lasts = [history.last_s for history in memory.histories if history.last_s is not None]
    lasts += steps.columns["time_s"][-1:]
    return Findings(
        run_dir=run_dir,
        asked=asked,
        events=tuple(events),
        steps=steps,
        memory=memory,
        marks=marks,
        progress=progress(
            events,
            step=steps.numbers[-1] if len(steps) else None,
            last_record_s=max(lasts, default=None),
            is_written=is_written(records_dir / EVENTS_FILE, starts[-1].facts) if starts else None,
            now_s=now_s,
        ),
        starts=starts_of_ranks,
        problems=(*asked.problems, *_left_out_lines(left_out)),
    )


def require_records(run_dir: Path, *, where: str) -> None:
    """Raises UserError if this is not the folder of a run."""
    if (run_dir / "records").is_dir():
        return
    raise UserError(
        "no records of a run there" if run_dir.is_dir() else "no such folder",
        where=where,
        found=str(run_dir),
        expected="a run's folder, with records/ in it",
        hint="name the folder that `train`, `launch` or `monitor` said",
    )


def _left_out_lines(left_out: LeftOut) -> list[str]:
    return [
        f"records/{path.name}: {count} damaged line{' is' if count == 1 else 's are'} left out"
        for path, count in sorted(left_out.items())
    ]


def _marks(events: list[Event]) -> Iterator[tuple[float, str]]:
    start: Event | None = None
    for event in events:
        if event.kind == "start":
            start = event
        elif event.kind == "phase":
            yield _drawn_s(event, start), event.message.partition(": ")[2] or event.message


def _drawn_s(event: Event, start: Event | None) -> float:
    """The time at which a curve has this event: the time of its start plus the monotonic time that passed since."""
    if start is None or not {"monotonic_s"} <= event.facts.keys() & start.facts.keys():
        return event.time_s
    return float(start.time_s + event.facts["monotonic_s"] - start.facts["monotonic_s"])
