from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_trainer.data.sampler import BatchPlan, DataPlace, Order, num_windows, permuted_indices
from dist_trainer.errors import UserError

KEYS = st.integers(0, 2**64 - 1)


def order_of(num_windows: int, seed: int) -> Order:
    """Windows of 4 tokens."""
    return Order(4 * num_windows + 1, 4, 4, seed)


@settings(deadline=None)
@given(size=st.integers(1, 600), key=KEYS)
def test_the_permutation_is_one(size: int, key: int) -> None:
    assert sorted(permuted_indices(np.arange(size), size, key).tolist()) == list(range(size))


@settings(deadline=None)
@given(size=st.integers(2**20, 2**48), key=KEYS, data=st.data())
def test_in_a_large_permutation_neighbours_stay_inside_and_apart(size: int, key: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 100))
    indices = permuted_indices(np.arange(start, start + 100), size, key).tolist()
    assert len(set(indices)) == 100
    assert all(0 <= index < size for index in indices)


def test_the_permutation_spreads_and_depends_on_its_key() -> None:
    size = 10_000
    first = permuted_indices(np.arange(size), size, 1).tolist()
    second = permuted_indices(np.arange(size), size, 2).tolist()
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
        plan = BatchPlan(order_of(windows, seed), micro_batch, accumulation, world_size)
        assert plan.global_batch == total
        ranks = [plan.windows(step, np.arange(accumulation), rank) for rank in range(world_size)]
        batches.append(np.stack(ranks, axis=1).ravel().tolist())
    assert all(batch == batches[0] for batch in batches)


@settings(deadline=None)
@given(
    micro_batch=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    world_size=st.integers(1, 3),
    num_steps=st.integers(1, 5),
    first_sample=st.integers(0, 3000),
)
def test_every_sample_is_read_once_and_in_turn(
    micro_batch: int, accumulation: int, world_size: int, num_steps: int, first_sample: int
) -> None:
    plan = BatchPlan(order_of(1000, 0), micro_batch, accumulation, world_size, first_sample)
    samples = [
        sample
        for step in range(num_steps)
        for micro_step in range(accumulation)
        for rank in range(world_size)
        for sample in plan.samples(step, micro_step, rank)
    ]
    assert samples == list(range(first_sample, first_sample + num_steps * plan.global_batch))


def test_each_epoch_is_all_windows_in_an_order_of_its_own() -> None:
    order = order_of(50, seed=3)
    epochs = [order.windows(np.arange(start, start + 50)).tolist() for start in (0, 50, 100)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != order_of(50, seed=4).windows(np.arange(50)).tolist()


def test_the_order_of_a_seed_never_changes() -> None:
    # A checkpoint says how far the data was read, and its seed: another order would read other data after it.
    plan = BatchPlan(order_of(1000, seed=1234), 8, 1, 1)
    assert plan.windows(0, 0, 0).tolist() == [756, 575, 649, 725, 362, 706, 210, 958]
    assert plan.windows(1000, 0, 0).tolist() == [136, 703, 82, 253, 999, 306, 657, 46]


def test_windows_share_one_token_and_the_last_needs_its_target() -> None:
    assert num_windows(9, 4) == 2
    assert num_windows(8, 4) == 1
    assert num_windows(5, 4) == 1
    with pytest.raises(UserError, match="shorter than one sequence") as raised:
        num_windows(4, 4)
    assert (raised.value.found, raised.value.expected) == ("4 tokens", "at least 5")


# (tokens, context length, sequence length): one window a block, several, a context that the length does not divide,
# a tail behind the last block, data shorter than a context, and enough blocks for chunks of several.
SHAPES = [
    (8001, 16, 16),
    (8001, 16, 4),
    (8001, 16, 5),
    (8010, 16, 4),
    (13, 16, 4),
    (64 * 3 * 16 * 4 + 9, 16, 4),
]


@pytest.mark.parametrize(("num_tokens", "context_length", "length"), SHAPES)
def test_an_epoch_reads_every_window_once_whatever_the_lengths(
    num_tokens: int, context_length: int, length: int
) -> None:
    order = Order(num_tokens, length, context_length, 7)
    count = num_windows(num_tokens, length)
    for epoch in range(2):
        read = order.windows(np.arange(epoch * count, (epoch + 1) * count)).tolist()
        assert sorted(read) == list(range(count))


def plain_permuted_index(position: int, size: int, key: int) -> int:
    """One position of `permuted_indices`, in Python's own integers."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    half_mask = (1 << half_bits) - 1
    while True:
        left, right = position >> half_bits, position & half_mask
        for number in range(6):
            mixed = ((right ^ key) + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
            mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
            left, right = right, left ^ ((mixed ^ mixed >> 31) & half_mask)
        position = left << half_bits | right
        if position < size:
            return position


def plain_window(order: Order, sample: int) -> int:
    """The window of one sample, as it was computed when `Order` knew one sample at a time."""

    def key(*numbers: int) -> int:
        text = "/".join(str(number) for number in numbers)
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")

    epoch, index = divmod(sample, order.num_windows)
    if index >= order.num_blocks * order.block_windows:
        return index
    block, inside = divmod(index, order.block_windows)
    if order.block_windows > 1:
        chunk = block // order.chunk_blocks
        first = chunk * order.chunk_blocks
        size = min(order.chunk_blocks, order.num_blocks - first) * order.block_windows
        mixed = plain_permuted_index(index - first * order.block_windows, size, key(order.seed, epoch, chunk))
        block, inside = first + mixed // order.block_windows, mixed % order.block_windows
    return plain_permuted_index(block, order.num_blocks, key(order.seed, epoch)) * order.block_windows + inside


@settings(deadline=None)
@given(
    num_tokens=st.one_of(st.integers(17, 20_000), st.integers(2**20, 2**44)),
    lengths=st.sampled_from([(16, 16), (16, 8), (16, 4), (16, 5), (4096, 1)]),
    seed=st.integers(0, 2**31),
    first=st.integers(0, 10**7),
    data=st.data(),
)
def test_windows_computed_together_are_those_computed_one_by_one(
    num_tokens: int, lengths: tuple[int, int], seed: int, first: int, data: st.DataObject
) -> None:
    """Across the ends of blocks, chunks and epochs."""
    context_length, length = lengths
    order = Order(num_tokens, length, context_length, seed)
    stride = data.draw(st.sampled_from([1, 7, order.num_windows // 10 + 1]))
    samples = first + stride * np.arange(60)
    assert order.windows(samples).tolist() == [plain_window(order, sample) for sample in samples.tolist()]
    grid = order.windows(samples.reshape(3, 20))
    assert grid.tolist() == order.windows(samples).reshape(3, 20).tolist()


@settings(deadline=None)
@given(
    lengths=st.lists(st.sampled_from([2, 4, 8, 16]), min_size=2, max_size=5),
    counts=st.lists(st.integers(1, 400), min_size=5, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_lengths_that_share_a_context_read_no_token_twice_in_an_epoch(
    lengths: list[int], counts: list[int], seed: int
) -> None:
    num_tokens = 64 * 3 * 16 * 16 + 11
    read: dict[int, list[int]] = {}
    place = DataPlace(0, 0, 16)
    for length, count in zip(lengths, counts, strict=False):
        order = Order(num_tokens, length, 16, seed)
        first = order.sample_at(place)
        samples = range(first, first + count)
        for sample, window in zip(samples, order.windows(np.asarray(samples)).tolist(), strict=True):
            start = window * length
            read.setdefault(sample // order.num_windows, []).extend(range(start, start + length))
        place = order.place(first + count)
    assert all(len(tokens) == len(set(tokens)) for tokens in read.values())


def test_another_length_leaves_out_no_more_than_a_64th() -> None:
    long, short = (Order(64 * 3 * 16 * 64 + 1, length, 16, 0) for length in (16, 4))
    one_short = short.place(1)
    assert long.sample_at(one_short) == long.chunk_blocks == 64
    assert long.chunk_blocks * 64 <= long.num_blocks
    last = short.place(short.num_windows - 1)
    assert long.sample_at(last) == long.num_windows


def test_the_same_length_goes_on_at_the_next_sample() -> None:
    order = Order(8010, 4, 16, 3)
    assert [order.sample_at(order.place(sample)) for sample in (0, 1, 1999, 2001, 2002, 5000)] == [
        *(0, 1, 1999, 2001, 2002, 5000)
    ]


def test_short_windows_of_one_context_are_not_read_together() -> None:
    order = Order(64 * 64 * 16 + 1, 4, 16, 5)
    blocks = order.windows(np.arange(order.num_windows)) // 4
    neighbours = np.count_nonzero(blocks[:-1] == blocks[1:])
    assert neighbours < order.num_windows / 50
