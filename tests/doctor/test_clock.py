from __future__ import annotations

import pytest

from dist_trainer.doctor.clock import Offset, RoundTrip, offset_of


def test_the_way_there_and_back_does_not_count() -> None:
    assert offset_of([RoundTrip(100.0, 190.25, 100.5)]) == Offset(90.0, 0.25)


def test_the_quickest_round_trip_counts() -> None:
    slow_one_way = RoundTrip(0.0, 5.9, 6.0)
    quick = RoundTrip(10.0, 10.01, 10.02)
    offset = offset_of([slow_one_way, quick])
    assert offset is not None
    assert offset.seconds == pytest.approx(0.0)
    assert offset.error_s == pytest.approx(0.01)


def test_no_round_trip_is_no_offset() -> None:
    assert offset_of([]) is None
