"""Line charts as SVG. docs/architecture.md says which libraries were tried instead.

The SVG holds only shapes that may be stretched. Ticks and labels are HTML text beside it, placed in percent, so that a
chart is readable on a telephone as on a wide screen. The values for the tooltip travel as JSON.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dist_trainer.report.charts.axes import format_ticks, format_time, ticks, time_ticks
from dist_trainer.report.reading.envelope import Bucket

WIDTH, HEIGHT = 1000, 300
# Percent of the height: labels closer than this would overlap.
LABEL_PERCENT = 7.0
# Percent of the width: beyond this a label centred under its tick might reach over the edge.
LAST_PERCENT = 92.0
MIN_GUTTER_PX = 48


@dataclass(frozen=True)
class Series:
    """A curve. The line goes through each bucket's `line` value; the area spans lowest to highest. `colour` is 0 to 7.
    Nothing is drawn across `breaks`, which are values of x.
    """

    name: str
    buckets: Sequence[Bucket]
    colour: int
    line: Literal["high", "mean"] = "high"
    is_band: bool = False
    breaks: Sequence[float] = ()


@dataclass(frozen=True)
class Rule:
    """A horizontal line across the chart; `kind` is its look."""

    kind: Literal["target", "baseline", "plan", "device"]
    name: str
    value: float


@dataclass(frozen=True)
class Mark:
    """A vertical line where a phase begins or a run was started again."""

    x: float
    name: str


@dataclass(frozen=True)
class Chart:
    """`unit` follows each value: "GB", or ''. `y_name`: what the vertical axis counts, if `unit` does not say it."""

    key: str
    title: str
    x_kind: Literal["time", "step"]
    series: Sequence[Series]
    unit: str = ""
    y_name: str = ""
    rules: Sequence[Rule] = ()
    marks: Sequence[Mark] = ()
    from_zero: bool = True
    caption: str = ""


@dataclass(frozen=True)
class Label:
    """Text at a place along an axis, in percent of its length. `room`: the width it may take, in percent."""

    percent: float
    text: str
    kind: str = ""
    room: float = 100.0


@dataclass(frozen=True)
class Drawn:
    """What the template needs. `data` goes into the page as JSON, for the tooltip."""

    chart: Chart
    shapes: tuple[tuple[str, str], ...]
    x_labels: tuple[Label, ...]
    y_labels: tuple[Label, ...]
    rule_labels: tuple[Label, ...]
    mark_labels: tuple[Label, ...]
    data: dict[str, Any]

    @property
    def x_name(self) -> str:
        return "time since the run began" if self.chart.x_kind == "time" else "optimizer step"

    @property
    def gutter_px(self) -> int:
        """Width of the column of numbers on the left, at 7 pixels a digit."""
        return max(MIN_GUTTER_PX, 10 + 7 * max((len(label.text) for label in self.y_labels), default=0))


def draw(chart: Chart) -> Drawn | None:
    """None if there is no point to draw."""
    points = [bucket for series in chart.series for bucket in series.buckets]
    if not points:
        return None
    x_low, x_high = min(bucket.start for bucket in points), max(bucket.start for bucket in points)
    if x_high == x_low:
        x_high = x_low + 1
    y_low, y_high = _y_range(chart, points)

    def x_at(x: float) -> float:
        return WIDTH * (x - x_low) / (x_high - x_low)

    def y_at(y: float) -> float:
        return HEIGHT * (1 - (y - y_low) / (y_high - y_low))

    shapes: list[tuple[str, str]] = []
    y_ticks = ticks(y_low, y_high)
    shapes += [("grid", f"M0 {_n(y_at(value))}H{WIDTH}") for value in y_ticks]
    shapes += [("mark", f"M{_n(x_at(mark.x))} 0V{HEIGHT}") for mark in chart.marks if x_low < mark.x < x_high]
    for series in chart.series:
        runs = _runs(series.buckets, series.breaks)
        shapes += [(f"area c{series.colour}", path) for run in runs if (path := _area(run, x_at, y_at))]
        if not series.is_band:
            shapes += [(f"line c{series.colour}", _line(run, series.line, x_at, y_at)) for run in runs]
    shapes += [(f"rule {rule.kind}", f"M0 {_n(y_at(rule.value))}H{WIDTH}") for rule in chart.rules]
    x_ticks = (time_ticks if chart.x_kind == "time" else ticks)(x_low, x_high)
    if chart.x_kind == "step":
        x_ticks = [value for value in x_ticks if value == int(value)]
    texts = [format_time(value) for value in x_ticks] if chart.x_kind == "time" else format_ticks(x_ticks)
    return Drawn(
        chart,
        tuple(shapes),
        x_labels=tuple(
            _x_label(x_at(value) / WIDTH * 100, text, is_minor=index % 2 == 1)
            for index, (value, text) in enumerate(zip(x_ticks, texts, strict=True))
        ),
        y_labels=tuple(
            Label(100 - y_at(value) / HEIGHT * 100, text)
            for value, text in zip(y_ticks, format_ticks(y_ticks), strict=True)
        ),
        rule_labels=tuple(_apart([Label(100 - y_at(r.value) / HEIGHT * 100, r.name, r.kind) for r in chart.rules])),
        mark_labels=tuple(_mark_labels(chart.marks, x_low, x_high)),
        data=_data(chart, x_low, x_high),
    )


def _x_label(percent: float, text: str, *, is_minor: bool) -> Label:
    """Centred under its tick, unless it would then reach over the chart's edge."""
    kinds = ["minor"] * is_minor + ["end"] * (percent > LAST_PERCENT)
    return Label(percent, text, " ".join(kinds))


def _y_range(chart: Chart, points: Sequence[Bucket]) -> tuple[float, float]:
    low = min(bucket.low for bucket in points)
    high = max([*(bucket.high for bucket in points), *(rule.value for rule in chart.rules)])
    if chart.from_zero:
        low = min(0.0, low)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (low if chart.from_zero and low == 0 else low - margin), high + margin


def _runs(buckets: Sequence[Bucket], breaks: Sequence[float]) -> list[Sequence[Bucket]]:
    """The curve in pieces, cut where the run stopped and was started again.

    A bucket that contains a break goes to the piece on the nearer side.
    """
    begins = [bucket.start for bucket in buckets]
    cuts = set()
    for place in breaks:
        holder = bisect_right(begins, place) - 1
        cuts.add(
            max((holder, holder + 1), key=lambda cut: begins[cut] - begins[cut - 1] if 0 < cut < len(begins) else 0)
        )
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(begins)), len(begins)]
    return [buckets[start:end] for start, end in itertools.pairwise(edges) if start < end]


def _line(run: Sequence[Bucket], which: str, x_at: Callable[[float], float], y_at: Callable[[float], float]) -> str:
    places = [f"{_n(x_at(bucket.start))} {_n(y_at(getattr(bucket, which)))}" for bucket in run]
    # A single point becomes a line of almost no length, whose round caps make a dot.
    return f"M{'L'.join(places)}" + ("h0.01" if len(places) == 1 else "")


def _area(run: Sequence[Bucket], x_at: Callable[[float], float], y_at: Callable[[float], float]) -> str:
    if all(bucket.low == bucket.high for bucket in run):
        return ""
    upper = [f"{_n(x_at(bucket.start))} {_n(y_at(bucket.high))}" for bucket in run]
    lower = [f"{_n(x_at(bucket.start))} {_n(y_at(bucket.low))}" for bucket in reversed(run)]
    return f"M{'L'.join([*upper, *lower])}Z"


def _apart(labels: Sequence[Label]) -> list[Label]:
    """Each label above its line, moved up where it would overlap the label below."""
    placed: list[Label] = []
    for label in sorted(labels, key=lambda label: label.percent):
        percent = label.percent
        if placed and percent < placed[-1].percent + LABEL_PERCENT:
            percent = placed[-1].percent + LABEL_PERCENT
        placed.append(Label(percent, label.text, label.kind))
    # Labels moved over the top edge come down again and push down those below them.
    limit = 100.0
    for index in range(len(placed) - 1, -1, -1):
        if placed[index].percent <= limit:
            break
        placed[index] = Label(limit, placed[index].text, placed[index].kind)
        limit -= LABEL_PERCENT
    return placed


def _mark_labels(marks: Sequence[Mark], x_low: float, x_high: float) -> list[Label]:
    inside = [mark for mark in marks if mark.x < x_high]
    labels = []
    for index, mark in enumerate(inside):
        start = 100 * (max(mark.x, x_low) - x_low) / (x_high - x_low)
        end = 100 * (inside[index + 1].x - x_low) / (x_high - x_low) if index + 1 < len(inside) else 100.0
        if end > start:
            labels.append(Label(start, mark.name, room=end - start))
    return labels


def _data(chart: Chart, x_low: float, x_high: float) -> dict[str, Any]:
    curves = []
    for series in chart.series:
        curve: dict[str, Any] = {
            "name": series.name,
            "colour": series.colour,
            "x": [_short(bucket.start) for bucket in series.buckets],
            "y": [_short(getattr(bucket, series.line)) for bucket in series.buckets],
        }
        if any(bucket.low != bucket.high for bucket in series.buckets):
            curve["low"] = [_short(bucket.low) for bucket in series.buckets]
            if series.line != "high":
                curve["high"] = [_short(bucket.high) for bucket in series.buckets]
        curves.append(curve)
    return {"x": [_short(x_low), _short(x_high)], "xKind": chart.x_kind, "unit": chart.unit, "curves": curves}


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _short(value: float) -> float:
    """Rounded to five digits: more than a tooltip shows, and half the page's size."""
    if value == 0 or not math.isfinite(value):
        return 0
    rounded = round(value, max(0, 4 - math.floor(math.log10(abs(value)))))
    return int(rounded) if rounded == int(rounded) else rounded
