"""The steps of a run as columns, for runs of any length."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from dist_trainer.records import StepRecord
from dist_trainer.report.reading.envelope import Bucket, Envelope

COLUMNS = ("loss", "learning_rate", "grad_norm", "tokens_per_s", "step_s", "data_wait_s", "num_tokens", "time_s")


@dataclass
class Steps:
    """One value a step in each column, in order of steps; what was not measured is NaN."""

    numbers: array[int] = field(default_factory=lambda: array("q"))
    phases: list[str] = field(default_factory=list)
    columns: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in COLUMNS})

    def __len__(self) -> int:
        return len(self.numbers)

    def curve(self, column: str) -> list[Bucket]:
        """The column over the steps, without what was not measured."""
        if not self.numbers:
            return []
        envelope = Envelope(origin=float(self.numbers[0]), width=1.0)
        for number, value in zip(self.numbers, self.columns[column], strict=True):
            if math.isfinite(value):
                envelope.add(float(number), value)
        return envelope.buckets()

    def phase_starts(self) -> list[tuple[int, str]]:
        """The first step of each stretch of one phase, and the phase's name."""
        return [
            (self.numbers[index], name)
            for index, name in enumerate(self.phases)
            if index == 0 or self.phases[index - 1] != name
        ]


def steps_of(records: Iterable[StepRecord]) -> Steps:
    """The columns of these steps, which are in order."""
    steps = Steps()
    for record in records:
        steps.numbers.append(record.step)
        steps.phases.append(record.phase)
        for name, column in steps.columns.items():
            value = getattr(record, name)
            column.append(math.nan if value is None else value)
    return steps


def total(values: Iterable[float]) -> float:
    """The sum of what was measured."""
    return math.fsum(value for value in values if math.isfinite(value))
