"""The steps of a run as columns, for runs of any length."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dist_trainer.records import STEPS_FILE, read_values
from dist_trainer.report.envelope import Bucket, Envelope

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


def read_steps(records_dir: Path) -> Steps:
    """Where a resumed run did a step again, the later record counts."""
    by_step = {}
    for values in read_values(records_dir / STEPS_FILE):
        row = [_number(values.get(name)) for name in COLUMNS]
        by_step[int(values["step"])] = (str(values.get("phase", "")), row)
    steps = Steps()
    columns = list(steps.columns.values())
    for number in sorted(by_step):
        phase, row = by_step[number]
        steps.numbers.append(number)
        steps.phases.append(phase)
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return steps


def total(values: Iterable[float]) -> float:
    """The sum of what was measured."""
    return math.fsum(value for value in values if math.isfinite(value))


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
