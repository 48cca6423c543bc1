"""Which windows of the data each rank reads at each step: a pure function of the position, without any state.

A dataset is read in one order, sample after sample and epoch after epoch. A step takes as many samples as its global
batch has; how they are split into ranks, micro batches and accumulation does not change the order. To read on, a
resumed run or the next phase needs only a `DataPlace`: how far the data was read, in tokens, and so independent of the
batch and the sequence length.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dist_trainer.errors import UserError
from dist_trainer.units import counted

_NUM_ROUNDS = 6
_MASK = 2**64 - 1
# Windows shorter than the context are mixed over up to this many blocks, so that neighbours in the text are not
# in one batch.
_MAX_CHUNK_BLOCKS = 64


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


def permuted_index(position: int, size: int, key: int) -> int:
    """The image of `position` under the permutation of [0, size) that `key` (64 bits) selects.

    A balanced Feistel network permutes the smallest [0, 4^n) that contains [0, size); a result outside [0, size) goes
    through it again (cycle walking), which takes fewer than four passes on average.
    """
    assert 0 <= position < size
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    half_mask = (1 << half_bits) - 1
    while True:
        left, right = position >> half_bits, position & half_mask
        for number in range(_NUM_ROUNDS):
            left, right = right, left ^ (_mix(right, key, number) & half_mask)
        position = left << half_bits | right
        if position < size:
            return position


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

    def window(self, sample: int) -> int:
        """The window to read as sample number `sample`, counted from the start of the first epoch."""
        epoch, index = divmod(sample, self.num_windows)
        if index >= self.num_blocks * self.block_windows:
            return index
        key = _key(self.seed, epoch)
        block, inside = divmod(index, self.block_windows)
        if self.block_windows > 1:
            chunk = block // self.chunk_blocks
            first = chunk * self.chunk_blocks
            size = min(self.chunk_blocks, self.num_blocks - first) * self.block_windows
            mixed = permuted_index(index - first * self.block_windows, size, _key(self.seed, epoch, chunk))
            block, inside = first + mixed // self.block_windows, mixed % self.block_windows
        return permuted_index(block, self.num_blocks, key) * self.block_windows + inside

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

    def samples(self, step: int, micro_step: int, rank: int) -> range:
        """The sample numbers of one micro batch. `step` counts from 0 at `first_sample`."""
        assert 0 <= micro_step < self.accumulation
        assert 0 <= rank < self.world_size
        before = step * self.global_batch + (micro_step * self.world_size + rank) * self.micro_batch
        return range(self.first_sample + before, self.first_sample + before + self.micro_batch)

    def windows(self, step: int, micro_step: int, rank: int) -> list[int]:
        return [self.order.window(sample) for sample in self.samples(step, micro_step, rank)]


def _key(*numbers: int) -> int:
    text = "/".join(str(number) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _mix(value: int, key: int, number: int) -> int:
    """SplitMix64's mixing function (Steele, Lea, Flood 2014) of the value, keyed by `key` and the round's number."""
    mixed = (value ^ key) + (number + 1) * 0x9E3779B97F4A7C15 & _MASK
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK
    return mixed ^ mixed >> 31
