"""Which windows of the data each rank reads at each step: arithmetic on the position, with nothing to remember.

The windows of a global batch follow from the step and the size of the global batch alone. Other splits of the same
global batch into ranks, micro batches and accumulation see the same windows, and a resumed run starts at its step.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dist_trainer.errors import UserError

_NUM_ROUNDS = 6
_MASK = 2**64 - 1


def num_windows(num_tokens: int, sequence_length: int, *, where: str | None = None) -> int:
    """Window w covers the tokens w * T to w * T + T, both included. Raises UserError when there is none."""
    count = (num_tokens - 1) // sequence_length
    if count < 1:
        raise UserError(
            "the dataset is shorter than one sequence",
            where=where,
            key="sequence_length",
            found=f"{num_tokens} tokens",
            expected=f"at least {sequence_length + 1}",
            hint="shorten the sequence, or prepare more text",
        )
    return count


def permuted_index(position: int, size: int, key: int) -> int:
    """Where `position` goes in the permutation of [0, size) that `key` (64 bits) names.

    A balanced Feistel network permutes the smallest [0, 4^n) that holds `size`; a result beyond `size` goes through
    again (cycle walking), which takes fewer than four turns on average.
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
class BatchPlan:
    """Samples are numbered from the start of the phase, over all ranks; every epoch is a new permutation.

    `micro_batch` samples make a micro batch, `accumulation` of those a step on each of `world_size` ranks.
    """

    num_windows: int
    micro_batch: int
    accumulation: int
    world_size: int
    seed: int

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.world_size

    def positions(self, step: int, micro_step: int, rank: int) -> range:
        """The samples of one micro batch; `step` counts optimizer steps from 0 at the start of the phase."""
        assert 0 <= micro_step < self.accumulation
        assert 0 <= rank < self.world_size
        first = step * self.global_batch + (micro_step * self.world_size + rank) * self.micro_batch
        return range(first, first + self.micro_batch)

    def window(self, position: int) -> int:
        epoch, index = divmod(position, self.num_windows)
        return permuted_index(index, self.num_windows, _epoch_key(self.seed, epoch))

    def windows(self, step: int, micro_step: int, rank: int) -> list[int]:
        return [self.window(position) for position in self.positions(step, micro_step, rank)]


def _epoch_key(seed: int, epoch: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8).digest(), "big")


def _mix(value: int, key: int, number: int) -> int:
    """SplitMix64 (Steele, Lea, Flood 2014) of the value under a key for each round."""
    mixed = (value ^ key) + (number + 1) * 0x9E3779B97F4A7C15 & _MASK
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK
    return mixed ^ mixed >> 31
