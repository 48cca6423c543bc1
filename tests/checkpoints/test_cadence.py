"""The period that the formula gives wastes as little as the best of a grid, by simulated failures."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_trainer.checkpoints.cadence import PRIOR_S, Failures, Save, best_period_s, mean_of, period_s

HOUR_S, DAY_S = 3600.0, 86_400.0
FACTORS = np.geomspace(0.25, 4.0, 61)


def wasted(period_s: float, cost_s: float, took_s: float, gaps_s: NDArray[np.float64]) -> float:
    """The share of the time between failures that no whole checkpoint has kept; saves begin every `period_s`."""
    num_kept = np.floor(np.maximum(0.0, gaps_s - took_s) / period_s)
    return float(1.0 - num_kept.sum() * (period_s - cost_s) / gaps_s.sum())


def least_wasted(cost_s: float, took_s: float, gaps_s: NDArray[np.float64]) -> float:
    """Of periods around Young's, in which a save has its time."""
    periods_s = FACTORS * (math.sqrt(2 * cost_s * float(gaps_s.mean())) + cost_s)
    return min(wasted(period, cost_s, took_s, gaps_s) for period in periods_s if period >= max(cost_s, took_s))


@pytest.mark.parametrize(
    ("cost_s", "took_s", "mean_time_s"),
    [
        (0.1, 5.0, DAY_S),
        (1.0, 20.0, DAY_S),
        (3.0, 3.0, 10 * 60.0),
        (3.0, 3.0, HOUR_S),
        (3.0, 30.0, 30 * DAY_S),
        (60.0, 200.0, HOUR_S),
        (60.0, 60.0, 7 * DAY_S),
        # A save that takes as long as there is between two failures, and longer.
        (1800.0, 1800.0, HOUR_S),
        (3600.0, 3600.0, HOUR_S),
        (7200.0, 7200.0, HOUR_S),
    ],
)
def test_the_period_wastes_no_more_than_5_percent_above_the_simulated_optimum(
    cost_s: float, took_s: float, mean_time_s: float
) -> None:
    gaps_s = np.random.default_rng(1).exponential(mean_time_s, 100_000)
    period = max(took_s, best_period_s(cost_s, mean_time_s))
    assert wasted(period, cost_s, took_s, gaps_s) <= 1.05 * least_wasted(cost_s, took_s, gaps_s)


def saves_of_a_run(cost_s: float, took_s: float, gaps_s: NDArray[np.float64], seed: int) -> Iterator[tuple[int, float]]:
    """After each failure its number, and the share that was wasted up to it, of a run that knows neither the cost nor
    the rate: it measures each save, a third too little or too much, and counts failures."""
    random = np.random.default_rng(seed)
    saves: list[Save] = []
    passed_s = kept_s = 0.0
    for number, gap_s in enumerate(gaps_s, start=1):
        begun_s = 0.0
        while True:
            period = 60.0
            for _ in range(3 if saves else 0):
                # It is due when so much time has passed, and becomes longer meanwhile.
                failures = Failures(number - 1, passed_s + begun_s + period)
                period = period_s(mean_of(saves[-9:]), failures)
            if begun_s + period + took_s > gap_s:
                break
            begun_s += period
            kept_s += period - cost_s
            saves.append(Save(cost_s * random.lognormal(0.0, 0.3), took_s * random.lognormal(0.0, 0.2)))
        passed_s += float(gap_s)
        yield number, 1.0 - kept_s / passed_s


@pytest.mark.parametrize(
    ("cost_s", "took_s", "mean_time_s"),
    [
        (3.0, 3.0, HOUR_S),
        (60.0, 60.0, HOUR_S),
        (600.0, 600.0, HOUR_S),
        (60.0, 60.0, 30 * DAY_S),
    ],
)
def test_a_run_that_estimates_cost_and_failures_is_within_5_percent_over_60_failures(
    cost_s: float, took_s: float, mean_time_s: float
) -> None:
    own, best = [], []
    periods_s = [factor * best_period_s(cost_s, mean_time_s) for factor in FACTORS]
    all_gaps_s = [np.random.default_rng(seed).exponential(mean_time_s, 60) for seed in range(10)]
    for seed, gaps_s in enumerate(all_gaps_s):
        own += [share for number, share in saves_of_a_run(cost_s, took_s, gaps_s, seed) if number == len(gaps_s)]
    # The one period that is best for all of these runs together, which none of them knows.
    for period in periods_s:
        if period >= max(cost_s, took_s):
            best.append(np.mean([wasted(period, cost_s, took_s, gaps_s) for gaps_s in all_gaps_s]))
    assert np.mean(own) <= 1.05 * min(best)


def test_without_a_failure_the_time_between_two_is_that_of_the_largest_run_and_then_twice_the_time_trained() -> None:
    assert Failures().mean_time_s == pytest.approx(3.094 * HOUR_S, rel=1e-3)
    assert Failures(0, 30 * DAY_S).mean_time_s == pytest.approx(60 * DAY_S + 2 * PRIOR_S)
    assert Failures(9, 95 * HOUR_S - PRIOR_S).mean_time_s == pytest.approx(10 * HOUR_S)


def test_where_a_save_costs_nothing_the_next_begins_when_it_is_written() -> None:
    assert period_s(Save(0.0, 40.0), Failures()) == 40.0


def test_the_mean_of_saves_counts() -> None:
    assert mean_of([Save(1.0, 10.0), Save(3.0, 20.0)]) == Save(2.0, 15.0)
