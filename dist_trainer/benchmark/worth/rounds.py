"""Which cell is measured when: rounds in changing order, never one cell several times in a row."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from dist_trainer.benchmark.worth.measurement import Measurement


@dataclass(frozen=True)
class Turn:
    """One measurement to be made; `round` and `place` in it count from 0."""

    cell: str
    round: int
    place: int


def order(cells: Sequence[str], round_: int) -> list[str]:
    """A shuffled order for each even round, and its reverse for the odd one after it: over the two, a machine that
    becomes steadily slower does so for every cell alike.
    """
    shuffled = random.Random(f"order of rounds {round_ // 2}").sample(list(cells), len(cells))
    return shuffled[::-1] if round_ % 2 else shuffled


def turns(cells: Sequence[str], num_rounds: int) -> list[Turn]:
    return [
        Turn(cell, round_, place) for round_ in range(num_rounds) for place, cell in enumerate(order(cells, round_))
    ]


def left(wanted: Iterable[Turn], measured: Iterable[Measurement]) -> list[Turn]:
    """Turns that are still to be taken. A cell that failed is not tried again."""
    done = {(one.cell, one.round) for one in measured}
    failed = {one.cell for one in measured if one.failure is not None}
    return [turn for turn in wanted if (turn.cell, turn.round) not in done and turn.cell not in failed]


def remaining_s(left_over: Sequence[Turn], measured: Sequence[Measurement]) -> float | None:
    """How long the remaining turns will take: each as long as its cell's median; if the cell was not measured yet, as
    long as the mean of the others' medians. None if nothing was measured.
    """
    took: dict[str, list[float]] = {}
    for one in measured:
        took.setdefault(one.cell, []).append(one.took_s)
    if not took:
        return None
    medians = {cell: median(each) for cell, each in took.items()}
    usual = sum(medians.values()) / len(medians)
    return sum(medians.get(turn.cell, usual) for turn in left_over)
