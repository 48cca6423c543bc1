"""Speed-up against ranks: both kinds of scaling with their intervals, and the ideal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dist_trainer.benchmark.scaling.cells import MODES, Mode
from dist_trainer.benchmark.scaling.points import Point
from dist_trainer.benchmark.worth.charts import Scatter, beside, y_range
from dist_trainer.benchmark.worth.ratios import Estimate
from dist_trainer.benchmark.worth.words import times
from dist_trainer.report.charts.axes import format_ticks, ticks
from dist_trainer.report.charts.chart import HEIGHT, LAST_PERCENT, WIDTH, Label

LOOKS: dict[Mode, str] = {"strong": "c0", "weak": "c1"}
IDEAL = "rule g1"
# Percent of the width that is left free on both sides of the points.
MARGIN = 6.0


def speed_up_against_ranks(points: Sequence[Point]) -> Scatter | None:
    """None where no speed-up is known."""
    lines = {
        mode: [(point.num_ranks, point.speed_up or _ONE) for point in points if point.mode == mode and _is_known(point)]
        for mode in MODES
    }
    measured = [one for line in lines.values() for one in line]
    if all(estimate is _ONE for _, estimate in measured):
        return None
    ideal = sorted({(point.num_ranks, point.ideal) for point in points})
    first, last = ideal[0][0], ideal[-1][0]
    low, high = y_range([estimate for _, estimate in measured] + [Estimate(y, None, None, 0) for _, y in ideal])

    def x_at(num_ranks: int) -> float:
        return MARGIN + (100 - 2 * MARGIN) * (num_ranks - first) / (last - first)

    def y_at(value: float) -> float:
        return 100 * (min(max(value, low), high) - low) / (high - low)

    def path(places: Iterable[tuple[int, float]]) -> str:
        return "M" + "L".join(f"{x_at(x) * WIDTH / 100:.1f} {HEIGHT * (1 - y_at(y) / 100):.1f}" for x, y in places)

    y_ticks = ticks(low, high)
    shapes = [("grid", f"M0 {HEIGHT * (1 - y_at(value) / 100):.1f}H{WIDTH}") for value in y_ticks]
    shapes.append((IDEAL, path(ideal)))
    for mode, line in lines.items():
        shapes.append((f"line {LOOKS[mode]}", path((x, one.value) for x, one in line)))
        for x, one in line:
            if one.low is not None and one.high is not None:
                shapes.append((f"line {LOOKS[mode]}", path(((x, one.low), (x, one.high)))))
            # A line of no length, whose round ends make a dot.
            shapes.append((f"dot {LOOKS[mode]}", path(((x, one.value),)) + "h0.01"))
    labelled = [(mode, x, one) for mode, line in lines.items() for x, one in line if one is not _ONE]
    places = beside([(x_at(x), y_at(one.value)) for _, x, one in labelled])
    return Scatter(
        shapes=tuple(shapes),
        x_labels=tuple(Label(x_at(x), str(x), "end" if x_at(x) > LAST_PERCENT else "") for x, _ in ideal),
        y_labels=tuple(Label(y_at(value), text) for value, text in zip(y_ticks, format_ticks(y_ticks), strict=True)),
        numbers=tuple(
            (*at, f"{one.value:.2f}", f"{x} ranks, {mode}: {times(one)}")
            for (mode, x, one), at in zip(labelled, places, strict=True)
        ),
        legend=(*((LOOKS[mode], f"{mode} scaling") for mode in MODES), (IDEAL, "ideal")),
        left_out=tuple(dict.fromkeys(point.title for point in points if not _is_known(point))),
    )


_ONE = Estimate(1.0, None, None, 0)


def _is_known(point: Point) -> bool:
    return point.speed_up is not None or (point.judgement == "" and point.num_rounds > 0)
