from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.monitor.ticks import next_tick_s


def test_ticks_stand_on_a_grid_from_the_start_so_that_lateness_does_not_add_up() -> None:
    assert math.isclose(next_tick_s(100.0, 0.1, 100.0), 100.1)
    assert math.isclose(next_tick_s(100.0, 0.1, 100.17), 100.2)


def test_what_was_missed_is_skipped_and_not_made_up_for() -> None:
    assert math.isclose(next_tick_s(100.0, 0.1, 103.05), 103.1)


@given(
    start_s=st.floats(0, 1e7),
    interval_s=st.floats(0.01, 3600),
    passed_s=st.floats(0, 1e6),
)
def test_the_next_tick_is_later_than_now_and_at_most_one_interval_away(
    start_s: float, interval_s: float, passed_s: float
) -> None:
    now_s = start_s + passed_s
    tick_s = next_tick_s(start_s, interval_s, now_s)
    assert now_s < tick_s <= now_s + interval_s * (1 + 1e-6) + 1e-6
