from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_trainer.report.reading.envelope import Bucket, Envelope

POINTS = st.lists(
    st.tuples(st.floats(0, 1e5, allow_nan=False), st.floats(-1e9, 1e9, allow_nan=False)), min_size=1, max_size=200
)


def envelope(points: list[tuple[float, float]], *, width: float = 0.5, num_buckets: int = 16) -> Envelope:
    found = Envelope(origin=0.0, width=width, num_buckets=num_buckets)
    for x, value in points:
        found.add(x, value)
    return found


@given(POINTS)
@settings(deadline=None)
def test_no_peak_is_lost_and_the_room_is_bounded(points: list[tuple[float, float]]) -> None:
    buckets = envelope(points).buckets()
    values = [value for _, value in points]
    assert 1 <= len(buckets) <= 16
    assert (min(bucket.low for bucket in buckets), max(bucket.high for bucket in buckets)) == (min(values), max(values))
    assert all(bucket.low <= bucket.high for bucket in buckets)
    assert [bucket.start for bucket in buckets] == sorted(bucket.start for bucket in buckets)


@given(POINTS)
@settings(deadline=None)
def test_each_point_lies_in_the_stretch_that_covers_it(points: list[tuple[float, float]]) -> None:
    found = envelope(points)
    for x, value in points:
        (bucket,) = [one for one in found.buckets() if one.start <= x < one.start + found.width]
        assert bucket.low <= value <= bucket.high


def test_a_point_before_the_origin_counts_as_of_the_first_stretch() -> None:
    assert envelope([(-3.0, 7.0)]).buckets() == [Bucket(0.0, 7.0, 7.0, 7.0, 7.0)]


def test_points_far_apart_and_out_of_order_are_kept() -> None:
    points = [(float(x), float(x)) for x in range(1000)]
    random.Random(1).shuffle(points)
    buckets = envelope(points).buckets()
    assert (buckets[0].low, buckets[-1].high) == (0.0, 999.0)


def over_all(*curves: Envelope) -> list[Bucket]:
    found = envelope([])
    for curve in curves:
        found.include_whole(curve)
    return found.buckets()


def test_many_curves_are_one_range_and_one_that_has_no_point_stays_where_it_was() -> None:
    still = envelope([(0.0, 5.0), (7.9, 5.0)])
    moving = envelope([(0.0, 1.0), (4.0, 9.0), (7.9, 2.0)])
    found = {bucket.start: (bucket.low, bucket.high) for bucket in over_all(still, moving)}
    assert (found[0.0], found[2.0], found[4.0], found[7.5]) == ((1.0, 5.0), (1.0, 5.0), (5.0, 9.0), (2.0, 5.0))


@pytest.mark.parametrize("is_short_first", [True, False])
def test_curves_of_unlike_length_are_joined_in_the_wider_stretches(is_short_first: bool) -> None:
    curves = [envelope([(0.0, 1.0), (1.0, 3.0)]), envelope([(0.0, 2.0), (1000.0, 2.0)])]
    buckets = over_all(*(curves if is_short_first else reversed(curves)))
    assert (buckets[0].low, buckets[0].high) == (1.0, 3.0)
    assert len(buckets) <= 16
    assert over_all() == []


@given(POINTS, POINTS)
@settings(deadline=None)
def test_two_parts_of_a_curve_are_the_curve(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> None:
    whole, parts = envelope([*one, *other]), envelope(one)
    parts.include(envelope(other))
    assert parts.width == whole.width
    assert [(b.start, b.low, b.high) for b in parts.buckets()] == [(b.start, b.low, b.high) for b in whole.buckets()]


def test_an_envelope_without_width_is_refused() -> None:
    with pytest.raises(ValueError, match="width"):
        Envelope(origin=0.0, width=0.0)
