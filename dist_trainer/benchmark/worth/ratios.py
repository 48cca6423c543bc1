"""How fast a cell is beside another one, with a 95% interval. docs/benchmark.md explains the method and its choice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from dist_trainer.benchmark.worth.measurement import Measurement

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float64]]

Verdict = Literal["faster", "slower", "no difference shown", "too few rounds"]

CONFIDENCE = 0.95
# With fewer rounds of either order, more than one resample in twenty has no spread, and the interval is unbounded.
FEWEST_OF_AN_ORDER = 3
NUM_RESAMPLES = 9999
# The pivot of a resample without any spread, which would be infinite: above every other one.
_WITHOUT_SPREAD = 1e12
# An interval that reaches further than a factor of a million says nothing: most of the values are equal.
_WIDEST = math.log(1e6)

# Of a cell: round -> natural logarithm of its speed, or of a ratio of speeds, in that round.
Logs = Mapping[int, float]


@dataclass(frozen=True)
class Estimate:
    """A ratio of speeds, or a speed in tokens/s, over `num_rounds` rounds, with its 95% interval.

    `low` and `high` are None if there are too few rounds.
    """

    value: float
    low: float | None
    high: float | None
    num_rounds: int

    @property
    def verdict(self) -> Verdict:
        """Of a ratio of speeds. An interval that includes 1, or ends at it, shows no difference."""
        if self.low is None or self.high is None:
            return "too few rounds"
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "no difference shown"


def log_speeds(measurements: Iterable[Measurement]) -> dict[str, dict[int, float]]:
    """cell -> round -> log of steps per second, by the median step.

    What failed is left out; if a round was measured twice, the later one counts.
    """
    found: dict[str, dict[int, float]] = {}
    for one in measurements:
        if one.has_figures:
            found.setdefault(one.cell, {})[one.round] = -math.log(one.median_step_s)
    return found


def paired(over: Logs, under: Logs) -> dict[int, float]:
    """The logarithms of their ratio, for the rounds that both have."""
    return {number: over[number] - under[number] for number in sorted(over.keys() & under.keys())}


def ratio(measurements: Sequence[Measurement], cell: str, base: str) -> Estimate | None:
    """The cell's speed as a multiple of the base's; None where there is no round in which both were measured."""
    speeds = log_speeds(measurements)
    return estimate(paired(speeds.get(cell, {}), speeds.get(base, {})))


def estimate(logs: Logs) -> Estimate | None:
    """The geometric mean, and its interval by a symmetric bootstrap-t; None where there is no round.

    Rounds 2k and 2k+1 are one order and its reverse. The mean is that of both orders' means, each with its own spread
    about it: what the machine's drift gives to a cell in one order it takes in the other.
    """
    if not logs:
        return None
    orders = [[value for number, value in sorted(logs.items()) if number % 2 == order] for order in (0, 1)]
    mean = fmean(fmean(order) for order in orders if order)
    half_width = None
    if min(map(len, orders)) >= FEWEST_OF_AN_ORDER:
        half_width = _half_width(orders[0], orders[1])
    return Estimate(
        value=math.exp(mean),
        low=None if half_width is None else math.exp(mean - half_width),
        high=None if half_width is None else math.exp(mean + half_width),
        num_rounds=len(logs),
    )


def _half_width(one: Sequence[float], reverse: Sequence[float]) -> float | None:
    """Half the width of a symmetric bootstrap-t interval: the quantile of |mean* - mean| / error* over resamples, times
    the error. None if it is unbounded.

    Source: P. Hall, On Symmetric Bootstrap Confidence Intervals, J. R. Statist. Soc. B 50 (1988).
    """
    import numpy as np
    from scipy.stats import bootstrap

    def mean(a: Floats, b: Floats) -> Floats:
        middle: Floats = (a.mean(axis=-1) + b.mean(axis=-1)) / 2
        return middle

    def standard_error(a: Floats, b: Floats) -> Floats:
        of_both: Floats = np.sqrt(a.var(axis=-1, ddof=1) / a.shape[-1] + b.var(axis=-1, ddof=1) / b.shape[-1]) / 2
        return of_both

    data = np.asarray(one), np.asarray(reverse)
    middle, error = mean(*data), standard_error(*data)

    def pivot(a: Floats, b: Floats, axis: int) -> Floats:
        away, spread = np.abs(mean(a, b) - middle), np.asarray(standard_error(a, b))
        return np.divide(away, spread, out=np.full_like(spread, _WITHOUT_SPREAD), where=spread > 0)

    # With a fixed seed, so that the same measurements give the same table.
    resampled = bootstrap(
        data,
        pivot,
        vectorized=True,
        axis=-1,
        n_resamples=NUM_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    quantile = np.quantile(resampled.bootstrap_distribution, CONFIDENCE, method="higher")
    half_width = float(quantile * error)
    return half_width if half_width <= _WIDEST else None
