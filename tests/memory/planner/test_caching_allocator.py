from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.memory.engines.ledger import EMPTY_CACHE
from dist_trainer.memory.planner.caching_allocator import MIB
from dist_trainer.memory.planner.caching_allocator import reserved_peak_bytes as peak_bytes


def reserved_peak_bytes(events: list[tuple[int, int]]) -> int:
    return peak_bytes(events, expandable=False)


def expandable_peak_bytes(events: list[tuple[int, int]]) -> int:
    return peak_bytes(events, expandable=True)


REPLAYS = (reserved_peak_bytes, expandable_peak_bytes)


@pytest.mark.parametrize(
    ("size", "reserved"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB),
    ],
)
def test_a_first_request_takes_the_segment_of_its_size(size: int, reserved: int) -> None:
    assert reserved_peak_bytes([(1, size)]) == reserved


def test_small_requests_share_a_segment() -> None:
    assert reserved_peak_bytes([(number, 512) for number in range(1, 4097)]) == 2 * MIB


def test_freed_neighbours_merge_and_are_taken_again() -> None:
    events = [(1, 8 * MIB), (2, 8 * MIB), (1, 0), (2, 0), (3, 20 * MIB)]
    assert reserved_peak_bytes(events) == 20 * MIB


def test_segments_apart_do_not_merge_but_expandable_ones_do() -> None:
    events = [(1, 40 * MIB), (2, 40 * MIB), (1, 0), (2, 0), (3, 80 * MIB)]
    assert reserved_peak_bytes(events) == 160 * MIB
    assert expandable_peak_bytes(events) == 80 * MIB


def test_emptying_the_cache_gives_back_what_is_wholly_free() -> None:
    events = [(1, 40 * MIB), (1, 0), EMPTY_CACHE, (2, 60 * MIB)]
    assert reserved_peak_bytes(events) == 60 * MIB


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, int]]:
    events, live = [], []
    for number in range(1, draw(st.integers(1, 60))):
        if live and draw(st.booleans()):
            events.append((live.pop(draw(st.integers(0, len(live) - 1))), 0))
        else:
            events.append((number, draw(st.integers(1, 64 * MIB))))
            live.append(number)
    return events


@given(histories())
def test_what_is_reserved_holds_what_is_allocated(events: list[tuple[int, int]]) -> None:
    sizes, held, peak = {}, 0, 0
    for number, size in events:
        held += size - (sizes.pop(number) if not size else 0)
        if size:
            sizes[number] = size
        peak = max(peak, held)
    for replay in REPLAYS:
        assert replay(events) >= peak
