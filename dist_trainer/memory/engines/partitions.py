"""How ZeRO partitions over the ranks: flat groups of parameters at stages 1 and 2, each parameter at stage 3; and the
parts of the parameters that stage 0 updates one after the other.

Source: DeepSpeed 0.19.8, runtime/zero/stage_1_and_2.py and partition_parameters.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# A flat group is padded to a multiple of this many elements a rank.
ALIGNMENT = 2
# Of stage 0 in 16-bit: parameters are updated together up to so many elements; a larger one is a part by itself.
PART_ELEMENTS = 2**20


@dataclass(frozen=True)
class Slice:
    """The part of a parameter's elements that lies in `rank`'s partition."""

    rank: int
    numel: int


@dataclass(frozen=True)
class FlatGroup:
    """One parameter group of stage 1 or 2, in elements. `order`: how its parameters lie in the flat buffer, whose size
    `flat_numel` includes padding. `slices`: by parameter.
    """

    order: tuple[int, ...]
    flat_numel: int
    partition_numel: int
    slices: dict[int, tuple[Slice, ...]]

    def owned(self, rank: int) -> tuple[int, ...]:
        """The parameters that lie, at least in part, in the rank's partition."""
        return tuple(p for p in self.order if any(part.rank == rank for part in self.slices[p]))

    def numel_of(self, parameter: int, rank: int) -> int:
        return sum(part.numel for part in self.slices[parameter] if part.rank == rank)


def flat_group(parameters: Sequence[int], numels: Sequence[int], world_size: int, *, round_robin: bool) -> FlatGroup:
    """Lays the parameters out in one flat buffer, cut into equal partitions. `numels`: elements of every parameter."""
    order = tuple(parameters)
    if round_robin:
        order = tuple(p for start in range(world_size) for p in order[start::world_size])
    unpadded = sum(numels[p] for p in order)
    alignment = ALIGNMENT * world_size
    flat = -(-unpadded // alignment) * alignment
    partition = flat // world_size
    slices, offset = {}, 0
    for parameter in order:
        end, parts = offset + numels[parameter], []
        while offset < end:
            rank = offset // partition
            until = min(end, (rank + 1) * partition)
            parts.append(Slice(rank, until - offset))
            offset = until
        slices[parameter] = tuple(parts)
    return FlatGroup(order, flat, partition, slices)


def shard_numel(numel: int, world_size: int) -> int:
    """Elements of one rank's shard of a parameter at stage 3, padding included."""
    return -(-numel // world_size)


def parts_of(numels: Sequence[int]) -> Iterator[slice]:
    """The parts of a group of parameters with these numbers of elements that stage 0 updates one after the other."""
    start, total = 0, 0
    for number, numel in enumerate(numels):
        if number > start and total + numel > PART_ELEMENTS:
            yield slice(start, number)
            start, total = number, 0
        total += numel
    if numels:
        yield slice(start, len(numels))
