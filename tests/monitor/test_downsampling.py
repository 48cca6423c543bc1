from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.monitor.downsampling import Downsampler
from dist_trainer.records import DeviceSample
from dist_trainer.units import MIB

TICK_S = 0.1


def sample(tick: int, used: int | None, *, rss: int | None = None, xid: tuple[int, ...] | None = None) -> DeviceSample:
    return DeviceSample("h", "g", tick * TICK_S, 0.0, used_bytes=used, rss_bytes=rss, xid_errors=xid)


def keep(levels: Sequence[int], *, start_tick: int = 0) -> list[tuple[int, int | None]]:
    """(tick, used bytes) of what is kept of samples ten times a second, one in ten of them full."""
    downsampler = Downsampler()
    kept = []
    for tick, used in enumerate(levels, start=start_tick):
        kept += downsampler.offer(sample(tick, used), is_full=tick % 10 == 0)
    kept += downsampler.flush()
    return [(round(one.monotonic_s / TICK_S), one.used_bytes) for one in kept]


def test_a_quiet_series_is_a_sample_a_second() -> None:
    assert [tick for tick, _ in keep([5] * 100)] == [*range(0, 100, 10), 99]


def test_a_change_is_kept_at_once_with_the_level_before_it() -> None:
    assert keep([5, 5, 5, 5, 3, 3, 3]) == [(0, 5), (3, 5), (4, 3), (6, 3)]


def test_a_peak_is_given_back_in_the_same_moment() -> None:
    downsampler = Downsampler()
    downsampler.offer(sample(0, 5), is_full=True)
    # Far into the run, where changes are held back for a while.
    downsampler.offer(sample(10_000_000, 5), is_full=True)
    downsampler.offer(sample(10_000_001, 4), is_full=False)
    assert downsampler.offer(sample(10_000_002, 6), is_full=False)[-1].used_bytes == 6


def far_into_a_run(level: int) -> Downsampler:
    """After a sample of that level, and another just above it, at tick 10,000,001: changes are held back from now on,
    for a minute.
    """
    downsampler = Downsampler()
    downsampler.offer(sample(0, 2 * level), is_full=True)
    downsampler.offer(sample(10_000_000, level), is_full=True)
    changed = sample(10_000_001, level + 1)
    assert changed in downsampler.offer(changed, is_full=False)
    return downsampler


def test_a_new_peak_of_the_process_counts_as_one_of_the_device_does() -> None:
    downsampler = far_into_a_run(50)

    def offer(tick: int, process_bytes: int) -> list[DeviceSample]:
        return downsampler.offer(replace(sample(tick, 51), process_bytes=process_bytes), is_full=False)

    assert [one.process_bytes for one in offer(10_000_002, 7)] == [7]
    assert offer(10_000_003, 6) == [], "a change that is no peak is held back"
    assert [one.process_bytes for one in offer(10_000_004, 8)] == [6, 8]


# Below the peak, the lowest before the highest and after it, neither first nor last.
@pytest.mark.parametrize(
    ("levels", "kept"),
    [([50, 30, 50, 70, 50], [(1, 30), (3, 70)]), ([50, 70, 50, 30, 50], [(1, 70), (3, 30)]), ([50, 50], [(0, 50)])],
)
@pytest.mark.parametrize("ends_by", ["a peak", "its window", "the end"])
def test_a_busy_stretch_becomes_its_lowest_and_its_highest_sample(
    levels: list[int], kept: list[tuple[int, int]], ends_by: str
) -> None:
    downsampler = far_into_a_run(60)
    first = 10_000_002
    for tick, used in enumerate(levels, start=first):
        assert downsampler.offer(sample(tick, used), is_full=False) == []
    if ends_by == "a peak":
        found = downsampler.offer(sample(first + len(levels), 200), is_full=False)
        last = [(len(levels), 200)]
    elif ends_by == "its window":
        found = downsampler.offer(sample(first + 1000, 50), is_full=False)
        # Of equal ones the first stands for all.
        last = []
    else:
        found = downsampler.flush()
        last = [(len(levels) - 1, levels[-1])]
    assert [(round(one.monotonic_s / TICK_S) - first, one.used_bytes) for one in found] == [*kept, *last]


def test_an_xid_is_kept_whenever_it_comes() -> None:
    downsampler = Downsampler()
    downsampler.offer(sample(0, 5), is_full=True)
    news = sample(1, 5, xid=(79,))
    assert downsampler.offer(news, is_full=True) == [news]


def test_the_first_of_a_phase_is_kept_whatever_it_holds() -> None:
    downsampler = Downsampler()
    downsampler.offer(sample(0, 5), is_full=True)
    assert downsampler.offer(sample(1, 5), is_full=False) == []
    first = replace(sample(2, 5), phase="short")
    assert downsampler.offer(first, is_full=False) == [first]
    assert downsampler.offer(replace(first, monotonic_s=0.3), is_full=False) == []


def test_a_resident_set_that_trembles_is_no_change_but_one_that_moves_is() -> None:
    downsampler = Downsampler()
    downsampler.offer(sample(0, None, rss=100 * MIB), is_full=True)
    assert downsampler.offer(sample(1, None, rss=100 * MIB + 4096), is_full=False) == []
    moved = downsampler.offer(sample(2, None, rss=102 * MIB), is_full=False)
    assert moved[-1].rss_bytes == 102 * MIB


def test_the_last_sample_is_kept() -> None:
    assert keep([5] * 16)[-1] == (15, 5)


def test_days_of_a_quiet_run_take_few_lines() -> None:
    three_days = 3 * 24 * 3600
    downsampler = Downsampler()
    kept = sum(len(downsampler.offer(sample(10 * second, 5), is_full=True)) for second in range(three_days))
    assert 5_000 < kept < 25_000


def test_hours_of_restless_memory_take_a_line_for_a_tick_in_the_first_and_fewer_later() -> None:
    downsampler = Downsampler()
    counts = []
    for hour in range(4):
        ticks = range(hour * 36_000, (hour + 1) * 36_000)
        samples = (sample(tick, 10**9 + tick * 7919 % 1000) for tick in ticks)
        counts.append(sum(len(downsampler.offer(one, is_full=False)) for one in samples))
    assert counts[0] <= 36_100
    assert counts[0] > counts[1] > counts[2] > counts[3] > 5_000


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.sampled_from([0, 10**6, 10**8]))
def test_the_highest_sample_is_always_kept_and_the_order_is_that_of_time(levels: list[int], start_tick: int) -> None:
    downsampler = Downsampler()
    if start_tick:
        downsampler.offer(sample(0, 0), is_full=True)
    kept: list[DeviceSample] = []
    for tick, used in enumerate(levels, start=start_tick):
        kept += downsampler.offer(sample(tick, used), is_full=tick % 10 == 0)
        highest_so_far = max(levels[: tick - start_tick + 1])
        if highest_so_far:
            assert max((one.used_bytes or 0 for one in kept), default=0) == highest_so_far
    kept += downsampler.flush()
    times = [one.monotonic_s for one in kept]
    assert times == sorted(set(times))
