"""The charts of a benchmark: speed against memory, bars of what each optimisation is worth, a waterfall to all of them.

Places are percent of a chart's width or height. `look` is a class of the report's style: a colour of it, `g1` for grey.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dist_trainer.benchmark.worth.cells import ALL, BASELINE
from dist_trainer.benchmark.worth.contributions import Contributions
from dist_trainer.benchmark.worth.ratios import Estimate
from dist_trainer.benchmark.worth.results import Results
from dist_trainer.benchmark.worth.rows import Row
from dist_trainer.benchmark.worth.words import SPOILS, group_name, times, worth
from dist_trainer.report.charts.axes import format_ticks, ticks
from dist_trainer.report.charts.chart import HEIGHT, LAST_PERCENT, MIN_GUTTER_PX, WIDTH, Label
from dist_trainer.units import GB, format_bytes

LOOKS = {
    "baseline": "g0",
    "noise": "g0",
    "alone": "c0",
    "without": "c2",
    "together": "c1",
    "preset": "c4",
    "zero": "c5",
}
TOTAL, FASTER, SLOWER, NOT_SHOWN, SPOILED = "c0", "c1", "c5", "g1", "c2"
# The room for a number beside a point, which is enough on a telephone too.
LABEL_WIDTH, LABEL_HEIGHT = 5.0, 6.5
# An interval of few rounds may reach far beyond all points: it is cut off at this fraction of their range from them.
MOST_BEYOND = 0.5


@dataclass(frozen=True)
class Scatter:
    """`shapes`: class and SVG path. `numbers`: the place, the number of the point's row in the table, and its tooltip.
    `legend`: look and name of each group. `left_out`: titles of rows that lack one of both figures.
    """

    shapes: tuple[tuple[str, str], ...]
    x_labels: tuple[Label, ...]
    y_labels: tuple[Label, ...]
    numbers: tuple[tuple[float, float, str, str], ...]
    legend: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...]

    @property
    def gutter_px(self) -> int:
        return max(MIN_GUTTER_PX, 10 + 7 * max((len(label.text) for label in self.y_labels), default=0))


@dataclass(frozen=True)
class Bar:
    """A bar of `width` from `left`, with a whisker from `low` to `high` if there is an interval."""

    name: str
    text: str
    look: str
    left: float
    width: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bars:
    """`zero`: the place of the rule that means no change; None for none."""

    bars: tuple[Bar, ...]
    zero: float | None


def speed_against_memory(rows: Sequence[Row]) -> Scatter | None:
    """The ratio to the baseline's speed over the measured peak; None where fewer than two cells have both."""
    known = [(number, row) for number, row in enumerate(rows, start=1) if row.peak_bytes is not None and _ratio(row)]
    if len(known) < 2:
        return None
    drawn = [number for number, _ in known]
    xs = {number: (row.peak_bytes or 0) / GB for number, row in known}
    ratios = {number: found for number, row in known if (found := _ratio(row))}
    (x_low, x_high), (y_low, y_high) = _range(xs.values()), y_range(list(ratios.values()))

    def x_at(x: float) -> float:
        return WIDTH * (x - x_low) / (x_high - x_low)

    def y_at(y: float) -> float:
        return HEIGHT * (1 - (min(max(y, y_low), y_high) - y_low) / (y_high - y_low))

    x_ticks, y_ticks = ticks(x_low, x_high), ticks(y_low, y_high)
    shapes = [("grid", f"M0 {y_at(value):.1f}H{WIDTH}") for value in y_ticks]
    shapes.append(("rule baseline", f"M0 {y_at(1.0):.1f}H{WIDTH}"))
    for number, row in known:
        ratio, x, look = ratios[number], x_at(xs[number]), LOOKS[row.group]
        if ratio.low is not None and ratio.high is not None:
            shapes.append((f"line {look}", f"M{x:.1f} {y_at(ratio.low):.1f}V{y_at(ratio.high):.1f}"))
        # A line of no length, whose round ends make a dot.
        shapes.append((f"dot {look}", f"M{x:.1f} {y_at(ratio.value):.1f}h0.01"))
    places = [(x_at(xs[number]) / WIDTH * 100, 100 - y_at(ratios[number].value) / HEIGHT * 100) for number in drawn]
    groups = {row.group: None for _, row in known if row.group != "noise"}
    return Scatter(
        shapes=tuple(shapes),
        x_labels=tuple(
            Label(percent, text, "end" if percent > LAST_PERCENT else "")
            for value, text in zip(x_ticks, format_ticks(x_ticks), strict=True)
            for percent in [x_at(value) / WIDTH * 100]
        ),
        y_labels=tuple(
            Label(100 - y_at(value) / HEIGHT * 100, text)
            for value, text in zip(y_ticks, format_ticks(y_ticks), strict=True)
        ),
        numbers=tuple(
            (x, y, str(number), f"{number}. {row.title}: {times(ratios[number])}, {format_bytes(row.peak_bytes or 0)}")
            for (number, row), (x, y) in zip(known, beside(places), strict=True)
        ),
        legend=tuple((LOOKS[group], group_name(group)) for group in groups),
        left_out=tuple(row.title for number, row in enumerate(rows, start=1) if number not in drawn),
    )


def beside(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A place near each point for the middle of its number, on no point and no other number where there is room."""
    placed: list[tuple[float, float]] = []
    for x, y in points:
        near = [
            (x + LABEL_WIDTH * right, y + LABEL_HEIGHT * up)
            for reach in (0.7, 1.1, 1.6, 2.2)
            for right, up in ((reach, 0), (-reach, 0), (0, reach), (0, -reach), (reach, reach), (-reach, -reach))
        ]
        inside = [one for one in near if 1.5 <= one[0] <= 98.5 and 2 <= one[1] <= 98]

        def is_free(place: tuple[float, float]) -> bool:
            return not any(
                abs(place[0] - other[0]) < LABEL_WIDTH * share and abs(place[1] - other[1]) < LABEL_HEIGHT * share
                for others, share in ((placed, 0.95), (points, 0.6))
                for other in others
            )

        placed.append(next(filter(is_free, inside), near[0]))
    return placed


def worth_bars(found: Contributions) -> Bars | None:
    """Two bars for each optimisation: alone, and in all. None where nothing was measured."""
    wanted = [
        (f"{one.title}{what}", estimate, is_spoiled)
        for one in found.each
        for what, estimate, is_spoiled in (
            (", alone", one.alone, one.spoils_alone),
            (", in all", one.in_all, one.spoils_in_all),
        )
        if estimate is not None
    ]
    if not wanted:
        return None
    low, high = y_range([estimate for _, estimate, _ in wanted])
    low, high = min(low, 1.0), max(high, 1.0)

    def at(value: float) -> float:
        return 100 * (min(max(value, low), high) - low) / (high - low)

    bars = [
        Bar(
            name,
            worth(estimate, is_spoiled=is_spoiled),
            _look(estimate, is_spoiled=is_spoiled),
            left=at(min(1.0, estimate.value)),
            width=abs(at(estimate.value) - at(1.0)),
            low=None if estimate.low is None else at(estimate.low),
            high=None if estimate.high is None else at(estimate.high),
        )
        for name, estimate, is_spoiled in wanted
    ]
    return Bars(tuple(bars), zero=at(1.0))


def waterfall(results: Results) -> Bars | None:
    """From the baseline's speed, share by share, to that of all together; None if one of these was not measured."""
    found = results.contributions
    by_name = {row.cell: row for row in results.rows}
    shares = [(one.title, one.share, one.spoils) for one in found.each if one.share is not None]
    start = by_name[BASELINE].tokens_per_s if BASELINE in by_name else None
    if start is None or found.together is None or not shares:
        return None
    factors = [share.value for _, share, _ in shares]
    # Not found.rest, which is of the rounds that have every share: with it the steps might not lead to the end.
    factors.append(found.together.value / math.prod(factors))
    levels = list(itertools.accumulate(factors, lambda level, factor: level * factor, initial=start))
    widest = max(levels) * 1.02

    def step(name: str, estimate: Estimate, is_spoiled: bool, before: float, after: float) -> Bar:
        left, right = 100 * min(before, after) / widest, 100 * max(before, after) / widest
        text, look = worth(estimate, is_spoiled=is_spoiled), _look(estimate, is_spoiled=is_spoiled)
        return Bar(name, text, look, left, right - left)

    rest = found.rest or Estimate(factors[-1], None, None, 0)
    steps = [*shares, ("the rest", rest, False)]
    end = f"{levels[-1]:,.0f} tokens/s"
    return Bars(
        (
            Bar(by_name[BASELINE].title, f"{start:,.0f} tokens/s", TOTAL, 0.0, 100 * start / widest),
            *(step(*one, *levels[i : i + 2]) for i, one in enumerate(steps)),
            Bar(
                by_name[ALL].title,
                f"{SPOILS}, {end}" if by_name[ALL].loss_is_spoiled else end,
                SPOILED if by_name[ALL].loss_is_spoiled else TOTAL,
                0.0,
                100 * levels[-1] / widest,
            ),
        ),
        zero=None,
    )


def _ratio(row: Row) -> Estimate | None:
    return Estimate(1.0, None, None, row.num_rounds) if row.cell == BASELINE and row.num_rounds else row.ratio


def _look(ratio: Estimate, *, is_spoiled: bool) -> str:
    return SPOILED if is_spoiled else {"faster": FASTER, "slower": SLOWER}.get(ratio.verdict, NOT_SHOWN)


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Lowest and highest, with a margin on each side."""
    known = list(values)
    margin = 0.08 * (max(known) - min(known)) or 0.1 * max(known) or 1.0
    return min(known) - margin, max(known) + margin


def y_range(ratios: Sequence[Estimate]) -> tuple[float, float]:
    values = [1.0, *(ratio.value for ratio in ratios)]
    most = MOST_BEYOND * (max(values) - min(values)) or 0.1
    ends = [end for ratio in ratios for end in (ratio.low, ratio.high) if end is not None]
    return _range([*values, *(min(max(end, min(values) - most), max(values) + most) for end in ends)])
