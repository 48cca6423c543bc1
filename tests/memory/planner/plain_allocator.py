"""A second model of torch's CUDA caching allocator, written for being read: every segment as a list of its blocks.

After c10/cuda/CUDACachingAllocator.cpp with its default settings (get_pool, get_allocation_size, get_free_block,
should_split, free_block, try_merge_blocks, release_cached_blocks). It looks at every block for every request.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dist_trainer.memory.engines.ledger import EMPTY_CACHE, Event

K_MIN_BLOCK = 512
K_SMALL_SIZE = 1048576
K_SMALL_BUFFER = 2097152
K_LARGE_BUFFER = 20971520
K_MIN_LARGE_ALLOC = 10485760
K_ROUND_LARGE = 2097152


@dataclass
class PlainBlock:
    size: int
    owner: int | None


@dataclass
class PlainSegment:
    """One piece of memory from the driver, in the order of addresses: segments as they came, blocks as they lie."""

    is_small: bool
    stream: int
    blocks: list[PlainBlock] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(block.size for block in self.blocks)


def plain_peak_bytes(events: Iterable[Event]) -> int:
    segments: list[PlainSegment] = []
    peak = 0
    for event in events:
        if event == EMPTY_CACHE:
            segments = [one for one in segments if len(one.blocks) > 1 or one.blocks[0].owner is not None]
            continue
        number, num_bytes, stream = event
        if num_bytes:
            allocate(segments, number, num_bytes, stream)
        else:
            free(segments, number)
        peak = max(peak, sum(segment.size for segment in segments))
    return peak


def allocate(segments: list[PlainSegment], number: int, num_bytes: int, stream: int) -> None:
    size = K_MIN_BLOCK * ((num_bytes + K_MIN_BLOCK - 1) // K_MIN_BLOCK)
    is_small = size <= K_SMALL_SIZE
    best: tuple[PlainSegment, int] | None = None
    for segment in segments:
        if segment.is_small != is_small or segment.stream != stream:
            continue
        for place, block in enumerate(segment.blocks):
            is_enough = block.owner is None and block.size >= size
            if is_enough and (best is None or block.size < best[0].blocks[best[1]].size):
                best = (segment, place)
    if best is None:
        if is_small:
            whole = K_SMALL_BUFFER
        elif size < K_MIN_LARGE_ALLOC:
            whole = K_LARGE_BUFFER
        else:
            whole = K_ROUND_LARGE * ((size + K_ROUND_LARGE - 1) // K_ROUND_LARGE)
        best = (PlainSegment(is_small, stream, [PlainBlock(whole, None)]), 0)
        segments.append(best[0])
    segment, place = best
    block = segment.blocks[place]
    remaining = block.size - size
    block.owner = number
    if remaining >= K_MIN_BLOCK if is_small else remaining > K_SMALL_SIZE:
        block.size = size
        segment.blocks.insert(place + 1, PlainBlock(remaining, None))


def free(segments: list[PlainSegment], number: int) -> None:
    for segment in segments:
        for block in segment.blocks:
            if block.owner == number:
                block.owner = None
                segment.blocks = merged(segment.blocks)
                return
    raise AssertionError(f"block {number} is not there")


def merged(blocks: list[PlainBlock]) -> list[PlainBlock]:
    result: list[PlainBlock] = []
    for block in blocks:
        if result and result[-1].owner is None and block.owner is None:
            result[-1].size += block.size
        else:
            result.append(block)
    return result
