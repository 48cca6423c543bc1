"""The order of measurements, what is left of them, and how long that will take."""

from __future__ import annotations

import pytest

from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.benchmark.worth.rounds import left, order, remaining_s, turns

CELLS = ("a", "b", "c", "d")


def made(cell: str, round_: int, *, took_s: float = 10.0, failure: str | None = None) -> Measurement:
    return Measurement(cell, round_, 0, 0.0, took_s=took_s, failure=failure)


def test_every_round_has_every_cell_once() -> None:
    for number in range(6):
        assert sorted(order(CELLS, number)) == list(CELLS)


def test_a_round_after_an_even_one_is_its_reverse_and_the_next_pair_is_another_order() -> None:
    assert order(CELLS, 1) == order(CELLS, 0)[::-1]
    assert len({tuple(order(CELLS, number)) for number in range(0, 20, 2)}) > 5


def test_no_cell_is_measured_twice_before_all_others_were_once() -> None:
    wanted = turns(CELLS, 3)
    assert [turn.round for turn in wanted] == [0] * 4 + [1] * 4 + [2] * 4
    assert [turn.place for turn in wanted[:4]] == [0, 1, 2, 3]


def test_what_was_measured_is_not_measured_again_and_what_failed_is_not_tried_again() -> None:
    rest = left(turns(CELLS, 2), [made("a", 0), made("b", 0, failure="out of memory")])
    assert sorted((turn.cell, turn.round) for turn in rest) == [("a", 1), ("c", 0), ("c", 1), ("d", 0), ("d", 1)]


def test_the_remaining_time_is_each_cells_own_median_and_the_usual_one_for_what_was_not_measured() -> None:
    measured = [made("a", 0, took_s=10.0), made("b", 0, took_s=30.0)]
    rest = left(turns(("a", "b", "c"), 2), measured)
    assert remaining_s(rest, measured) == pytest.approx(10 + 30 + 2 * 20)
    assert remaining_s(rest, []) is None
