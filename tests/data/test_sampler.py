from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_trainer.data.sampler import BatchPlan, num_windows, permuted_index
from dist_trainer.errors import UserError

KEYS = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(size=st.integers(1, 600), key=KEYS)
def test_the_permutation_is_one(size: int, key: int) -> None:
    assert sorted(permuted_index(position, size, key) for position in range(size)) == list(range(size))


@settings(deadline=None)
@given(size=st.integers(2**20, 2**48), key=KEYS, data=st.data())
def test_in_a_large_permutation_neighbours_stay_inside_and_apart(size: int, key: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 100))
    indices = [permuted_index(position, size, key) for position in range(start, start + 100)]
    assert len(set(indices)) == 100
    assert all(0 <= index < size for index in indices)


def test_the_permutation_spreads_and_depends_on_its_key() -> None:
    size = 10_000
    first = [permuted_index(position, size, 1) for position in range(size)]
    second = [permuted_index(position, size, 2) for position in range(size)]
    assert sum(one == other for one, other in zip(first, second, strict=True)) < 10
    assert sum(index == position for position, index in enumerate(first)) < 10
    assert sum(later == earlier + 1 for earlier, later in pairwise(first)) < 10
    # The first half must land evenly in all ten tenths: 500 in each, give or take.
    tenths = [sum(index * 10 // size == tenth for index in first[: size // 2]) for tenth in range(10)]
    assert all(400 < count < 600 for count in tenths)


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    other=st.permutations([0, 1, 2]),
    windows=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    step=st.integers(0, 50),
)
def test_the_global_batch_is_the_same_however_it_is_split(
    shape: tuple[int, int, int], other: list[int], windows: int, seed: int, step: int
) -> None:
    split = tuple(shape[number] for number in other)
    total = shape[0] * shape[1] * shape[2]
    batches = []
    for micro_batch, accumulation, world_size in (shape, split, (total, 1, 1), (1, total, 1), (1, 1, total)):
        plan = BatchPlan(windows, micro_batch, accumulation, world_size, seed)
        assert plan.global_batch == total
        batches.append(
            [
                window
                for micro_step in range(accumulation)
                for rank in range(world_size)
                for window in plan.windows(step, micro_step, rank)
            ]
        )
    assert all(batch == batches[0] for batch in batches)


@settings(deadline=None)
@given(
    micro_batch=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    world_size=st.integers(1, 3),
    num_steps=st.integers(1, 5),
)
def test_every_sample_is_read_once_and_in_turn(
    micro_batch: int, accumulation: int, world_size: int, num_steps: int
) -> None:
    plan = BatchPlan(1000, micro_batch, accumulation, world_size, 0)
    positions = [
        position
        for step in range(num_steps)
        for micro_step in range(accumulation)
        for rank in range(world_size)
        for position in plan.positions(step, micro_step, rank)
    ]
    assert positions == list(range(num_steps * plan.global_batch))


def test_each_epoch_is_all_windows_in_an_order_of_its_own() -> None:
    plan = BatchPlan(50, 1, 1, 1, seed=3)
    epochs = [[plan.window(position) for position in range(start, start + 50)] for start in (0, 50, 100)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != [BatchPlan(50, 1, 1, 1, seed=4).window(position) for position in range(50)]


def test_the_order_of_a_seed_never_changes() -> None:
    # A checkpoint says its step and its seed: another order would read other data after it.
    plan = BatchPlan(1000, 8, 1, 1, seed=1234)
    assert plan.windows(0, 0, 0) == [756, 575, 649, 725, 362, 706, 210, 958]
    assert plan.windows(1000, 0, 0) == [136, 703, 82, 253, 999, 306, 657, 46]


def test_windows_share_one_token_and_the_last_needs_its_target() -> None:
    assert num_windows(9, 4) == 2
    assert num_windows(8, 4) == 1
    assert num_windows(5, 4) == 1
    with pytest.raises(UserError, match="shorter than one sequence") as raised:
        num_windows(4, 4)
    assert (raised.value.found, raised.value.expected) == ("4 tokens", "at least 5")
