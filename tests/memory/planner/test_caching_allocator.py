from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_allocator import plain_peak_bytes

from dist_trainer.memory.engines.ledger import COMPUTE, EMPTY_CACHE, REDUCTION, Event
from dist_trainer.memory.planner.caching_allocator import MIB, reserved_peak_bytes

KIB = 2**10


def replayed(*steps: tuple[int, int] | Event, expandable: bool = False, is_late: bool = False) -> int:
    """(block, bytes) on the compute stream, or (block, bytes, stream)."""
    events = [step if len(step) == 3 else (*step, COMPUTE) for step in steps]
    return reserved_peak_bytes(events, expandable=expandable, is_late=is_late)


def expanded(*steps: tuple[int, int] | Event) -> int:
    return replayed(*steps, expandable=True)


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
    assert replayed((1, size)) == reserved


def test_small_requests_share_a_segment() -> None:
    assert replayed(*((number, 512) for number in range(1, 4097))) == 2 * MIB


def test_a_request_takes_whole_multiples_of_512_bytes() -> None:
    # 4096 of them fill 2 MiB; of 513 bytes each takes two.
    assert replayed(*((number, 513) for number in range(1, 2049))) == 2 * MIB
    assert replayed(*((number, 513) for number in range(1, 2050))) == 4 * MIB
    # One byte more than 1 MiB less 511 is rounded up to 1 MiB, and small.
    assert replayed((1, MIB - 511)) == 2 * MIB


def test_what_is_left_of_a_large_block_is_a_block_from_more_than_a_mebibyte_on() -> None:
    # 20 MiB less 9 are split twice: 9, 9, and 2 that are one more block of their own.
    assert replayed((1, 9 * MIB), (2, 9 * MIB), (3, 2 * MIB)) == 20 * MIB
    # Of 12 MiB for 11 the last is no block: 1 MiB is too little.
    assert replayed((1, 11 * MIB), (1, 0), (2, 11 * MIB), (3, 1 * MIB + 512)) == 32 * MIB
    # What is no block goes with the one before it, and is not there for the one behind. Three fill 20 MiB; the first is
    # let go of, and a smaller one takes its place; then what is let go of beside it has to do for 5 MiB.
    for smaller, reserved in ((7 * MIB - 512, 20 * MIB), (7 * MIB, 40 * MIB), (15 * MIB // 2, 40 * MIB)):
        filled = ((1, 8 * MIB), (2, 4 * MIB), (3, 8 * MIB), (1, 0))
        assert replayed(*filled, (4, smaller), (2, 0), (5, 4 * MIB + 512), (6, 512)) == reserved + 2 * MIB
    # In the pool of small blocks 512 bytes are one.
    assert replayed((1, MIB), (2, MIB - 512), (3, 512)) == 2 * MIB


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    held = ((1, 30 * MIB), (2, 20 * MIB), (3, 40 * MIB), (1, 0), (2, 0), (3, 0))
    # Each finds its own again; the first that is large enough would leave 40 MiB none.
    assert replayed(*held, (4, 20 * MIB), (5, 30 * MIB), (6, 40 * MIB)) == 90 * MIB
    assert replayed(*held, (4, 20 * MIB), (5, 40 * MIB), (6, 30 * MIB)) == 90 * MIB


def test_freed_neighbours_merge_and_are_taken_again() -> None:
    assert replayed((1, 8 * MIB), (2, 8 * MIB), (1, 0), (2, 0), (3, 20 * MIB)) == 20 * MIB


def test_segments_apart_do_not_merge_but_expandable_ones_do() -> None:
    steps = ((1, 40 * MIB), (2, 40 * MIB), (1, 0), (2, 0), (3, 80 * MIB))
    assert replayed(*steps) == 160 * MIB
    assert expanded(*steps) == 80 * MIB


def test_expandable_segments_are_mapped_in_pages_of_their_pool() -> None:
    assert expanded((1, 512)) == 2 * MIB
    assert expanded((1, 2 * MIB)) == 20 * MIB
    assert expanded((1, 21 * MIB)) == 40 * MIB
    assert expanded((1, 21 * MIB), (2, 512)) == 42 * MIB


def test_expandable_segments_are_split_however_little_is_left_over() -> None:
    # The half MiB behind the block that takes 1's place merges with 2's place.
    steps = ((1, 20 * MIB), (2, 2 * MIB), (3, 18 * MIB), (1, 0), (4, 19 * MIB + MIB // 2), (2, 0))
    assert expanded(*steps, (5, 2 * MIB + MIB // 2)) == 40 * MIB
    assert replayed(*steps, (5, 2 * MIB + MIB // 2)) > 40 * MIB


def test_emptying_the_cache_gives_back_what_is_wholly_free() -> None:
    assert replayed((1, 40 * MIB), (1, 0), EMPTY_CACHE, (2, 60 * MIB)) == 60 * MIB
    # A part of a segment is not.
    assert replayed((1, 8 * MIB), (2, 8 * MIB), (1, 0), EMPTY_CACHE, (3, 60 * MIB)) == 80 * MIB


def test_emptying_the_cache_unmaps_an_expandable_segment_behind_its_last_block() -> None:
    steps = ((1, 40 * MIB), (2, 40 * MIB), (2, 0), EMPTY_CACHE)
    assert expanded(*steps, (3, 512)) == 80 * MIB
    assert expanded(*steps, (3, 60 * MIB)) == 100 * MIB
    assert expanded((1, 40 * MIB), EMPTY_CACHE, (2, 512)) == 42 * MIB
    # In front of it, it does not: the hole is taken again.
    assert expanded((1, 40 * MIB), (2, 40 * MIB), (1, 0), EMPTY_CACHE, (3, 60 * MIB)) == 140 * MIB


@pytest.mark.parametrize("expandable", [False, True])
def test_a_stream_does_not_get_what_another_let_go_of(expandable: bool) -> None:
    steps: tuple[tuple[int, int] | Event, ...] = ((1, 40 * MIB), (1, 0))
    assert replayed(*steps, (2, 40 * MIB), expandable=expandable) == 40 * MIB
    assert replayed(*steps, (2, 40 * MIB, REDUCTION), expandable=expandable) == 80 * MIB


def test_late_a_block_of_a_side_stream_is_had_again_after_the_next_one() -> None:
    steps: list[Event] = []
    for number in range(1, 5):
        steps += [(number, 40 * MIB, REDUCTION), (number, 0, COMPUTE)]
    assert replayed(*steps) == 40 * MIB
    assert replayed(*steps, is_late=True) == 80 * MIB
    assert replayed(*((number, size, COMPUTE) for number, size, _ in steps), is_late=True) == 40 * MIB


SIZES = st.one_of(
    st.integers(1, 40).map(lambda count: count * MIB // 2),
    st.integers(1, 4 * KIB),
    st.integers(MIB - KIB, MIB + KIB),
    st.integers(1, 64 * MIB),
    st.sampled_from([10 * MIB]),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = []
    live: list[int] = []
    for number in range(1, draw(st.integers(1, 60))):
        what = draw(st.integers(0, 9))
        if live and what < 5:
            events.append((live.pop(draw(st.integers(0, len(live) - 1))), 0, COMPUTE))
        elif what == 9:
            events.append(EMPTY_CACHE)
        else:
            events.append((number, draw(SIZES), draw(st.sampled_from([COMPUTE, COMPUTE, REDUCTION]))))
            live.append(number)
    return events


@settings(max_examples=400)
@given(histories())
def test_the_replay_is_that_of_a_plain_model_of_torchs_allocator(events: list[Event]) -> None:
    assert reserved_peak_bytes(events, expandable=False) == plain_peak_bytes(events)


@given(histories())
def test_what_is_reserved_holds_what_is_allocated(events: list[Event]) -> None:
    peak = allocated_peak(events)
    for expandable in (False, True):
        least = reserved_peak_bytes(events, expandable=expandable)
        assert least >= peak
        assert reserved_peak_bytes(events, expandable=expandable, is_late=True) >= peak


def allocated_peak(events: Sequence[Event]) -> int:
    sizes: dict[int, int] = {}
    held = peak = 0
    for event in events:
        if event == EMPTY_CACHE:
            continue
        number, size, _ = event
        held += size - (sizes.pop(number) if not size else 0)
        if size:
            sizes[number] = size
        peak = max(peak, held)
    return peak
