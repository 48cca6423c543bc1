"""Which windows of the data each rank reads at each step: a pure function of the position, without any state.

A dataset is read in one order, sample after sample and epoch after epoch. A step takes as many samples as its global
batch has; how they are split into ranks, micro batches and accumulation does not change the order. To read on, a
resumed run or the next phase needs only a `DataPlace`: how far the data was read, in tokens, and so independent of the
batch and the sequence length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dist_trainer.errors import UserError
from dist_trainer.units import counted

_NUM_ROUNDS = 6
# Windows shorter than the context are mixed over up to this many blocks, so that neighbours in the text are not
# in one batch.
_MAX_CHUNK_BLOCKS = 64

Integers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


def num_windows(num_tokens: int, sequence_length: int, *, where: str | None = None) -> int:
    """Window w covers tokens w * T to w * T + T, both included. Raises UserError if the data has no whole window."""
    count = (num_tokens - 1) // sequence_length
    if count < 1:
        raise UserError(
            "the dataset is shorter than one sequence",
            where=where,
            key="sequence_length",
            found=counted(num_tokens, "token"),
            expected=f"at least {sequence_length + 1}",
            hint="shorten the sequence, or prepare more text",
        )
    return count


def permuted_indices(positions: Integers, sizes: Integers | int, keys: Keys | int) -> Integers:
    """The image of each position under the permutation of [0, size) that its key (64 bits) selects.

    A balanced Feistel network permutes the smallest [0, 4^n) that contains [0, size); a result outside [0, size) goes
    through it again (cycle walking), which takes fewer than four passes on average. `sizes` and `keys` are one for
    all positions, or one for each.
    """
    assert np.all((positions >= 0) & (positions < sizes))
    found = positions.astype(np.uint64)
    sizes = np.broadcast_to(np.asarray(sizes, np.uint64), found.shape)
    keys = np.broadcast_to(np.asarray(keys, np.uint64), found.shape)
    # frexp's exponent of a whole number below 2^53 is its bit length.
    num_bits = np.frexp((sizes - np.uint64(1)).astype(np.float64))[1]
    half_bits = np.maximum(1, (num_bits + 1) // 2).astype(np.uint64)
    outside = np.arange(found.size)
    while outside.size:
        found[outside] = _feistel(found[outside], half_bits[outside], keys[outside])
        outside = outside[found[outside] >= sizes[outside]]
    return found.astype(np.int64)


@dataclass(frozen=True)
class DataPlace:
    """How far a dataset was read: whole epochs, and tokens of the current one, in windows of `sequence_length`."""

    epoch: int
    tokens: int
    sequence_length: int


@dataclass(frozen=True)
class Order:
    """The order in which a dataset's windows are read; every epoch is a new permutation.

    Blocks of `context_length` tokens are permuted. If the sequence length divides the context length, a block holds
    several windows, which are mixed with those of neighbouring blocks in the order (a chunk); else it holds one window.
    So for every such sequence length the first samples of an epoch come from the same first blocks, and phases with
    different sequence lengths can read on after each other without reading a text twice. A sequence length that does
    not divide the context length has an order of its own.
    """

    num_tokens: int
    sequence_length: int
    context_length: int
    seed: int

    @property
    def num_windows(self) -> int:
        return num_windows(self.num_tokens, self.sequence_length)

    @property
    def block_windows(self) -> int:
        """Windows per block; 1 also if the data is shorter than a block."""
        shares = self.context_length % self.sequence_length == 0 and self.num_tokens > self.context_length
        return self.context_length // self.sequence_length if shares else 1

    @property
    def block_tokens(self) -> int:
        """Orders of the same data with equal block tokens are one order, in windows of different lengths."""
        return self.block_windows * self.sequence_length

    @property
    def num_blocks(self) -> int:
        """The number of whole blocks. Windows after the last whole block come last in every epoch."""
        return self.num_windows // self.block_windows

    @property
    def chunk_blocks(self) -> int:
        return max(1, min(_MAX_CHUNK_BLOCKS, self.num_blocks // _MAX_CHUNK_BLOCKS))

    def windows(self, samples: Integers) -> Integers:
        """The windows to read as these samples, counted from the start of the first epoch; in the shape of `samples`.

        Most of what a call costs is the same for one sample and for a thousand: ask for many at once.
        """
        epochs, windows = np.divmod(samples, self.num_windows)
        whole = windows < self.num_blocks * self.block_windows
        windows[whole] = self._in_whole_blocks(epochs[whole], windows[whole])
        return windows

    def _in_whole_blocks(self, epochs: Integers, indices: Integers) -> Integers:
        blocks, inside = np.divmod(indices, self.block_windows)
        if self.block_windows > 1:
            chunks = blocks // self.chunk_blocks
            first = chunks * self.chunk_blocks
            sizes = np.minimum(self.chunk_blocks, self.num_blocks - first) * self.block_windows
            num_chunks = -(-self.num_blocks // self.chunk_blocks)
            keys = _keys(epochs * num_chunks + chunks, lambda number: _key(self.seed, *divmod(number, num_chunks)))
            mixed, inside = np.divmod(
                permuted_indices(indices - first * self.block_windows, sizes, keys), self.block_windows
            )
            blocks = first + mixed
        keys = _keys(epochs, lambda epoch: _key(self.seed, epoch))
        return permuted_indices(blocks, self.num_blocks, keys) * self.block_windows + inside

    def place(self, sample: int) -> DataPlace:
        """How far the data has been read when `sample` is the next one."""
        epoch, index = divmod(sample, self.num_windows)
        return DataPlace(epoch, index * self.sequence_length, self.sequence_length)

    def sample_at(self, place: DataPlace) -> int:
        """The first sample not yet read at `place`, which belongs to the same order.

        If the place was reached in windows of another length, the rest of the current chunk is skipped in this epoch:
        at most 1/64 of it.
        """
        epoch_start = place.epoch * self.num_windows
        if place.sequence_length == self.sequence_length:
            return epoch_start + place.tokens // self.sequence_length
        num_chunks = -(-place.tokens // (self.chunk_blocks * self.block_tokens))
        block = num_chunks * self.chunk_blocks
        return epoch_start + (block * self.block_windows if block < self.num_blocks else self.num_windows)


@dataclass(frozen=True)
class BatchPlan:
    """Steps from `first_sample` of an order on, each of one global batch over all ranks.

    `micro_batch` samples make a micro batch; `accumulation` micro batches on each of `world_size` ranks make a step.
    """

    order: Order
    micro_batch: int
    accumulation: int
    world_size: int
    first_sample: int = 0

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.world_size

    def samples(self, step: Integers | int, micro_step: Integers | int, rank: int) -> Integers:
        """The sample numbers [..., micro_batch] of one micro batch, or of one for each of the steps and micro steps.

        `step` counts from 0 at `first_sample`.
        """
        steps, micro_steps = np.asarray(step), np.asarray(micro_step)
        assert np.all((micro_steps >= 0) & (micro_steps < self.accumulation))
        assert 0 <= rank < self.world_size
        before = steps * self.global_batch + (micro_steps * self.world_size + rank) * self.micro_batch
        samples: Integers = self.first_sample + before[..., np.newaxis] + np.arange(self.micro_batch)
        return samples

    def windows(self, step: Integers | int, micro_step: Integers | int, rank: int) -> Integers:
        """The windows [..., micro_batch] of the same samples."""
        return self.order.windows(self.samples(step, micro_step, rank))


def _key(*numbers: int) -> int:
    text = "/".join(str(number) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _keys(numbers: Integers, key_of: Callable[[int], int]) -> Keys:
    """Each number's key. There are few different numbers among them."""
    distinct, which = np.unique(numbers, return_inverse=True)
    return np.array([key_of(number) for number in distinct.tolist()], np.uint64)[which]


def _feistel(values: Keys, half_bits: Keys, keys: Keys) -> Keys:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for number in range(_NUM_ROUNDS):
        left, right = right, left ^ (_mix(right, keys, number) & mask)
    joined: Keys = left << half_bits | right
    return joined


def _mix(values: Keys, keys: Keys, number: int) -> Keys:
    """SplitMix64's mixing function (Steele, Lea, Flood 2014) of each value, keyed by its key and the round's number.

    Sums and products are taken modulo 2^64, as uint64 does by itself.
    """
    mixed: Keys = (values ^ keys) + np.uint64((number + 1) * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
