from __future__ import annotations

import itertools
import json
import re

import pytest

from dist_trainer.report.charts.axes import format_ticks, format_time, ticks, time_ticks
from dist_trainer.report.charts.chart import LABEL_PERCENT, Chart, Mark, Rule, Series, draw
from dist_trainer.report.reading.envelope import Bucket


def flat(x: float, y: float) -> Bucket:
    return Bucket(x, y, y, y, y)


def chart(*buckets: Bucket, **others: object) -> Chart:
    fields: dict[str, object] = {"key": "k", "title": "t", "x_kind": "time", "series": [Series("one", buckets, 0)]}
    return Chart(**{**fields, **others})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 10.0, [0, 2, 4, 6, 8, 10]), (0.0, 2.65, [0, 1, 2]), (3.1, 3.9, [3.2, 3.4, 3.6, 3.8]), (5.0, 5.0, [5.0])],
)
def test_ticks_are_round_numbers_within_the_range(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_ticks_of_time_are_what_clocks_have() -> None:
    assert time_ticks(0, 30) == [0, 5, 10, 15, 20, 25, 30]
    assert [format_time(value) for value in time_ticks(0, 7000)] == ["0", "30m", "1h", "1h 30m"]
    assert format_time(90061) == "1d 1h 1m 1s"


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0, 0.5, 1.0], ["0.0", "0.5", "1.0"]),
        ([0.0, 5000.0, 10_000.0], ["0", "5K", "10K"]),
        ([0.0, 2e6, 4e6], ["0", "2M", "4M"]),
        ([0.0, 2e-4, 4e-4], ["0", "2e-4", "4e-4"]),
        ([0.0, 5e-5, 1e-4, 1.5e-4], ["0", "0.5e-4", "1.0e-4", "1.5e-4"]),
        ([0.0, 2e-5, 4e-5], ["0", "2e-5", "4e-5"]),
    ],
)
def test_ticks_read_with_as_many_decimals_as_they_need(values: list[float], texts: list[str]) -> None:
    assert format_ticks(values) == texts


def test_a_chart_without_a_point_is_none() -> None:
    assert draw(chart()) is None
    assert draw(chart(series=[])) is None


def test_a_single_point_is_a_dot() -> None:
    drawn = draw(chart(flat(3.0, 2.0)))
    assert drawn is not None
    assert [path for look, path in drawn.shapes if look == "line c0"] == ["M0 17h0.01"]


def test_the_line_runs_through_the_highest_values_and_the_area_holds_the_range() -> None:
    drawn = draw(chart(Bucket(0, 1, 3, 2, 2), Bucket(10, 2, 4, 3, 3)))
    assert drawn is not None
    (line,) = [path for look, path in drawn.shapes if look == "line c0"]
    (area,) = [path for look, path in drawn.shapes if look == "area c0"]
    assert area.startswith(line.split("L")[0]) and area.endswith("Z") and area.count("L") == 3
    assert drawn.data["curves"][0]["y"] == [3, 4]
    assert drawn.data["curves"][0]["low"] == [1, 2]


@pytest.mark.parametrize("place", [1.3, 30.0, 50.0, 50.7])
def test_no_line_is_drawn_from_before_a_restart_to_after_it(place: float) -> None:
    buckets = [flat(0, 1), flat(1, 1), flat(50, 1), flat(51, 1)]
    drawn = draw(chart(series=[Series("one", buckets, 0, breaks=[place])]))
    assert drawn is not None
    lines = [path for look, path in drawn.shapes if look == "line c0"]
    assert [line.count("L") for line in lines] == [1, 1]


def test_every_rule_is_within_the_chart_and_no_two_labels_lie_on_one_another() -> None:
    rules = [Rule("baseline", "b", 16.0), Rule("target", "t", 2.5), Rule("plan", "p", 2.45), Rule("device", "d", 15.9)]
    drawn = draw(chart(flat(0, 1), flat(9, 2), rules=rules))
    assert drawn is not None
    places = sorted(label.percent for label in drawn.rule_labels)
    assert all(0 <= place <= 100 for place in places)
    assert all(b - a >= LABEL_PERCENT * 0.999 for a, b in itertools.pairwise(places))
    heights = [float(re.sub(r"M0 (.*)H.*", r"\1", path)) for look, path in drawn.shapes if look.startswith("rule")]
    assert all(0 <= height <= 300 for height in heights)


def test_phases_have_the_room_up_to_the_next_for_their_names() -> None:
    drawn = draw(chart(flat(0, 1), flat(100, 2), marks=[Mark(-5.0, "first"), Mark(40.0, "second"), Mark(900.0, "no")]))
    assert drawn is not None
    assert [(one.text, one.percent, one.room) for one in drawn.mark_labels] == [
        ("first", 0.0, 40.0),
        ("second", 40.0, 60.0),
    ]


def test_what_is_pointed_at_travels_as_json() -> None:
    drawn = draw(chart(flat(0, 1.23456789), flat(10, 123456.789), unit="GB"))
    assert drawn is not None
    data = json.loads(json.dumps(drawn.data))
    assert data["unit"] == "GB"
    assert data["curves"][0] == {"name": "one", "colour": 0, "x": [0, 10], "y": [1.2346, 123457]}


def test_the_last_label_of_an_axis_ends_within_the_chart() -> None:
    drawn = draw(chart(flat(0, 1), flat(100, 2), x_kind="step"))
    assert drawn is not None
    assert [(label.text, label.kind.split()[-1:]) for label in drawn.x_labels][-1] == ("100", ["end"])
    assert all("end" not in label.kind for label in drawn.x_labels[:-1])


def test_the_axes_are_named_and_the_numbers_of_the_left_one_have_room() -> None:
    over_steps = draw(chart(flat(0, 0.001), flat(9, 0.00125), x_kind="step", from_zero=False))
    over_time = draw(chart(flat(0, 1), flat(9, 2)))
    assert over_steps is not None and over_time is not None
    assert (over_steps.x_name, over_time.x_name) == ("optimizer step", "time since the run began")
    longest = max(len(label.text) for label in over_steps.y_labels)
    assert longest == 6 and over_steps.gutter_px > over_time.gutter_px
