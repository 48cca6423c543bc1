"""What a rule yields."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dist_trainer.slurm.lint.batch_file import BatchFile


@dataclass(frozen=True)
class Problem:
    """What was found on a line, and what to do about it."""

    line: int
    found: str
    hint: str


Rule = Callable[[BatchFile], Iterable[Problem]]
