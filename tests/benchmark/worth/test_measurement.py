"""What follows from one measurement."""

from __future__ import annotations

import pytest

from dist_trainer.benchmark.worth.measurement import Measurement

MADE = Measurement("fused", 0, 0, 5.0, num_tokens=200, warm_up_s=(3.0, 1.0), step_s=(0.5, 1.0, 0.5))


def test_speed_is_that_of_the_median_step() -> None:
    assert (MADE.median_step_s, MADE.tokens_per_s) == (0.5, 400)


def test_what_the_first_steps_took_above_the_later_ones_is_compilation() -> None:
    assert MADE.compile_s == pytest.approx(3.0)


def test_one_that_failed_has_no_speed() -> None:
    with pytest.raises(ValueError, match="out of memory"):
        _ = Measurement("fused", 0, 0, 5.0, failure="out of memory").tokens_per_s
