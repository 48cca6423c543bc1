"""A replay of allocations through the rules of torch's CUDA caching allocator: what it reserves from the driver.

Source: torch c10/cuda/CUDACachingAllocator.cpp with default settings: sizes are rounded to 512 bytes; requests of at
most 1 MiB come from 2 MiB segments, below 10 MiB from 20 MiB segments, larger ones from segments of their own in
multiples of 2 MiB; best fit; blocks are split and merged; a segment is given back when the cache is emptied. With
`expandable_segments:True` each pool is one segment that grows, so that neighbours merge wherever they lie.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

MIB = 2**20
ROUNDING = 512
EMPTY_CACHE = (0, 0)
SMALL_REQUEST = MIB
SMALL_SEGMENT = 2 * MIB
LARGE_REQUEST = 10 * MIB
LARGE_SEGMENT = 20 * MIB
ROUND_SEGMENT = 2 * MIB
_VIRTUAL_BYTES = 2**50


@dataclass(slots=True)
class _Block:
    address: int
    size: int
    is_small: bool
    is_free: bool = False
    before: _Block | None = None
    after: _Block | None = None


class _Pool:
    """Free blocks by size, then address."""

    def __init__(self) -> None:
        self._keys: list[tuple[int, int]] = []
        self._blocks: dict[int, _Block] = {}

    def add(self, block: _Block) -> None:
        insort(self._keys, (block.size, block.address))
        self._blocks[block.address] = block

    def remove(self, block: _Block) -> None:
        del self._keys[bisect_left(self._keys, (block.size, block.address))]
        del self._blocks[block.address]

    def drop_whole_segments(self) -> int:
        """Removes the free blocks that are segments of their own; returns their bytes."""
        whole = [block for block in self._blocks.values() if block.before is None and block.after is None]
        for block in whole:
            self.remove(block)
        return sum(block.size for block in whole)

    def best_fit(self, size: int) -> _Block | None:
        place = bisect_left(self._keys, (size, -1))
        return self._blocks[self._keys[place][1]] if place < len(self._keys) else None


def reserved_peak_bytes(events: Iterable[tuple[int, int]]) -> int:
    """The most that was reserved. `events`: (block, bytes), bytes 0 where the block is freed; EMPTY_CACHE as such."""
    pools = {True: _Pool(), False: _Pool()}
    live: dict[int, _Block] = {}
    reserved = peak = 0
    next_address = 1
    for number, num_bytes in events:
        if (number, num_bytes) == EMPTY_CACHE:
            reserved -= sum(pool.drop_whole_segments() for pool in pools.values())
            continue
        if not num_bytes:
            _free(live.pop(number), pools)
            continue
        size = -(-num_bytes // ROUNDING) * ROUNDING
        is_small = size <= SMALL_REQUEST
        block = pools[is_small].best_fit(size)
        if block is None:
            segment = _segment_bytes(size)
            block = _Block(next_address, segment, is_small)
            next_address += segment
            reserved += segment
            peak = max(peak, reserved)
        else:
            pools[is_small].remove(block)
            block.is_free = False
        live[number] = _split(block, size, pools[is_small])
    return peak


def expandable_peak_bytes(events: Iterable[tuple[int, int]]) -> int:
    """The same with expandable segments: memory is mapped in pages of 2 MiB, and of 20 MiB for large blocks.

    Emptying the cache is counted as unmapping what lies behind the last live block, which is a little less than it
    gives back.
    """
    pools = {True: _Pool(), False: _Pool()}
    starts = {True: 1, False: 1 + _VIRTUAL_BYTES}
    pages = {True: SMALL_SEGMENT, False: LARGE_SEGMENT}
    for is_small, pool in pools.items():
        pool.add(_Block(starts[is_small], _VIRTUAL_BYTES, is_small, is_free=True))
    mapped = {True: 0, False: 0}
    live: dict[int, _Block] = {}
    peak = 0
    for number, num_bytes in events:
        if (number, num_bytes) == EMPTY_CACHE:
            for is_small in pools:
                ends = (block.address + block.size for block in live.values() if block.is_small == is_small)
                mapped[is_small] = _mapped(max(ends, default=starts[is_small]) - starts[is_small], pages[is_small])
            continue
        if not num_bytes:
            _free(live.pop(number), pools)
            continue
        size = -(-num_bytes // ROUNDING) * ROUNDING
        is_small = size <= SMALL_REQUEST
        block = pools[is_small].best_fit(size)
        assert block is not None, "the virtual range is larger than any GPU"
        pools[is_small].remove(block)
        block.is_free = False
        live[number] = block = _split(block, size, pools[is_small])
        end = block.address + block.size - starts[is_small]
        mapped[is_small] = max(mapped[is_small], _mapped(end, pages[is_small]))
        peak = max(peak, sum(mapped.values()))
    return peak


def _mapped(num_bytes: int, page: int) -> int:
    return -(-num_bytes // page) * page


def _segment_bytes(size: int) -> int:
    if size <= SMALL_REQUEST:
        return SMALL_SEGMENT
    if size < LARGE_REQUEST:
        return LARGE_SEGMENT
    return -(-size // ROUND_SEGMENT) * ROUND_SEGMENT


def _split(block: _Block, size: int, pool: _Pool) -> _Block:
    rest = block.size - size
    if rest < (ROUNDING if block.is_small else SMALL_REQUEST + 1):
        return block
    remainder = _Block(block.address + size, rest, block.is_small, True, block, block.after)
    if block.after is not None:
        block.after.before = remainder
    block.size, block.after = size, remainder
    pool.add(remainder)
    return block


def _free(block: _Block, pools: dict[bool, _Pool]) -> None:
    pool = pools[block.is_small]
    before, after = block.before, block.after
    if before is not None and before.is_free:
        pool.remove(before)
        before.size += block.size
        before.after = after
        if after is not None:
            after.before = before
        block = before
    if after is not None and after.is_free:
        pool.remove(after)
        block.size += after.size
        block.after = after.after
        if after.after is not None:
            after.after.before = block
    block.is_free = True
    pool.add(block)
