"""A run that is stopped and goes on, again and again, by what its position says: no sample is skipped or repeated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from dist_trainer.checkpoints.position import Position
from dist_trainer.data.sampler import BatchPlan, Order

POSITIONS = TypeAdapter(Position)
NAME = "data"


@dataclass(frozen=True)
class Start:
    """One start of the run: its split of a batch, the steps up to its checkpoint, and the lost ones after it."""

    micro_batch: int
    accumulation: int
    world_size: int
    kept_steps: int
    lost_steps: int


def starts_of(global_batch: int | None) -> st.SearchStrategy[Start]:
    """Of any split, or of those of one global batch."""
    small = st.integers(1, 6)
    if global_batch is None:
        splits = st.tuples(small, small, st.integers(1, 4))
    else:
        divisors = [number for number in range(1, global_batch + 1) if global_batch % number == 0]
        splits = st.sampled_from(
            [
                (micro_batch, global_batch // micro_batch // world_size, world_size)
                for micro_batch in divisors
                for world_size in (1, 2, 3, 4)
                if global_batch // micro_batch % world_size == 0
            ]
        )
    return splits.flatmap(
        lambda split: st.builds(Start, *map(st.just, split), kept_steps=st.integers(0, 9), lost_steps=st.integers(0, 3))
    )


def windows_of(start: Start, order: Order, first_sample: int, num_steps: int) -> list[int]:
    """What all ranks read, in the order of the samples."""
    plan = BatchPlan(order, start.micro_batch, start.accumulation, start.world_size, first_sample)
    grid = np.indices((num_steps, start.accumulation))
    ranks = [plan.windows(grid[0], grid[1], rank) for rank in range(start.world_size)]
    return [int(window) for window in np.stack(ranks, axis=2).ravel()]


def run_through(order: Order, starts: list[Start]) -> tuple[list[int], Position]:
    """The windows that count, start after start, and the last position. What was lost must be what is read next."""
    position, ledger, lost = Position(), [], []
    for start in starts:
        # As it is written and read again.
        position = POSITIONS.validate_json(POSITIONS.dump_json(position), strict=True)
        place = position.places.get(NAME)
        sample = 0 if place is None else order.sample_at(place)
        read = windows_of(start, order, sample, start.kept_steps + start.lost_steps)
        both = min(len(read), len(lost))
        assert read[:both] == lost[:both]
        global_batch = start.micro_batch * start.accumulation * start.world_size
        for _ in range(start.kept_steps):
            sample += global_batch
            num_tokens = global_batch * order.sequence_length
            position = position.after_step("only", num_tokens=num_tokens, order=NAME, place=order.place(sample))
        num_kept = start.kept_steps * global_batch
        ledger += read[:num_kept]
        # What an earlier start had lost beyond what this one has read is still to come.
        lost = max(read[num_kept:], lost[num_kept:], key=len)
    return ledger, position


def assert_each_once(order: Order, ledger: list[int]) -> None:
    """In every whole epoch each window once; in the last, which may be cut, none twice."""
    for first in range(0, len(ledger), order.num_windows):
        epoch = Counter(ledger[first : first + order.num_windows])
        assert max(epoch.values()) == 1
        assert first + order.num_windows > len(ledger) or set(epoch) == set(range(order.num_windows))


# One window a block and several, a length that does not divide the context's, a tail behind the last block.
ORDERS = st.builds(
    Order,
    num_tokens=st.integers(17, 2000),
    sequence_length=st.sampled_from([16, 8, 4, 5]),
    context_length=st.just(16),
    seed=st.integers(0, 2**31),
)


@given(order=ORDERS, starts=st.lists(starts_of(None), min_size=1, max_size=8))
def test_whatever_the_batch_and_the_ranks_of_each_start(order: Order, starts: list[Start]) -> None:
    ledger, position = run_through(order, starts)
    assert_each_once(order, ledger)
    assert position.progress("only").tokens == len(ledger) * order.sequence_length


@given(order=ORDERS, starts=st.sampled_from([6, 8, 12]).flatmap(lambda g: st.lists(starts_of(g), max_size=8)))
def test_with_one_global_batch_they_are_those_of_a_run_that_nobody_stops(order: Order, starts: list[Start]) -> None:
    ledger, _ = run_through(order, starts)
    assert ledger == order.windows(np.arange(len(ledger))).tolist()
