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
    """Each column has one value per step, in order of steps; NaN where a value was not measured."""

    numbers: array[int] = field(default_factory=lambda: array("q"))
    phases: list[str] = field(default_factory=list)
    columns: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in COLUMNS})

    def __len__(self) -> int:
        return len(self.numbers)

    def curve(self, column: str) -> list[Bucket]:
        """The column over the steps, without values that were not measured."""
        if not self.numbers:
            return []
        envelope = Envelope(origin=float(self.numbers[0]), width=1.0)
        for number, value in zip(self.numbers, self.columns[column], strict=True):
            if math.isfinite(value):
                envelope.add(float(number), value)
        return envelope.buckets()

    def phase_starts(self) -> list[tuple[int, str]]:
        """The first step of each run of steps in one phase, and the phase's name."""
        return [
            (self.numbers[index], name)
            for index, name in enumerate(self.phases)
            if index == 0 or self.phases[index - 1] != name
        ]


def steps_of(records: Iterable[StepRecord]) -> Steps:
    """The columns of these records, which are sorted by step."""
    steps = Steps()
    for record in records:
        steps.numbers.append(record.step)
        steps.phases.append(record.phase)
        for name, column in steps.columns.items():
            value = getattr(record, name)
            column.append(math.nan if value is None else value)
    return steps


def total(values: Iterable[float]) -> float:
    """The sum of the values that were measured (not NaN)."""
    return math.fsum(value for value in values if math.isfinite(value))
