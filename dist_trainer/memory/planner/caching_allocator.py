"""A replay of allocations through the rules of torch's CUDA caching allocator: what it reserves from the driver.

Source: torch c10/cuda/CUDACachingAllocator.cpp with default settings: sizes are rounded to 512 bytes; requests of at
most 1 MiB come from 2 MiB segments, below 10 MiB from 20 MiB segments, larger ones from segments of their own in
multiples of 2 MiB; best fit; blocks are split and merged, large ones only if more than 1 MiB is left over; a segment is
given back when the cache is emptied. With `expandable_segments:True` each pool is one segment that grows, so that
neighbours merge wherever they lie, and every block is split. Each stream has pools of its own: a block freed on one is
not reused on another.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dist_trainer.memory.engines.ledger import COMPUTE, EMPTY_CACHE, Event

MIB = 2**20
ROUNDING = 512
SMALL_REQUEST = MIB
SMALL_SEGMENT = 2 * MIB
LARGE_REQUEST = 10 * MIB
LARGE_SEGMENT = 20 * MIB
ROUND_SEGMENT = 2 * MIB
_VIRTUAL_BYTES = 2**50


# Whether the pool is for small blocks, and its stream.
PoolKey = tuple[bool, int]


@dataclass(slots=True)
class _Block:
    address: int
    size: int
    key: PoolKey
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


class _Segments:
    """Default settings: a new segment whenever no free block fits. Emptying the cache gives back those wholly free."""

    def __init__(self) -> None:
        self.pools: defaultdict[PoolKey, _Pool] = defaultdict(_Pool)
        self.reserved_bytes = 0
        self._next_address = 1

    def new_block(self, size: int, key: PoolKey) -> _Block:
        """A new segment, for a request of `size` bytes that no free block can hold."""
        segment = _segment_bytes(size)
        block = _Block(self._next_address, segment, key)
        self._next_address += segment
        self.reserved_bytes += segment
        return block

    def least_rest(self, key: PoolKey) -> int:
        """The fewest bytes left over for which a block is split (`should_split`)."""
        is_small, _ = key
        return ROUNDING if is_small else SMALL_REQUEST + 1

    def taken(self, block: _Block) -> None:
        pass

    def empty_cache(self, live: Iterable[_Block]) -> None:
        self.reserved_bytes -= sum(pool.drop_whole_segments() for pool in self.pools.values())


class _ExpandableSegments:
    """One segment a pool, mapped from its start on in pages of 2 MiB, or of 20 MiB for large blocks.

    Emptying the cache is modelled as unmapping what lies behind the last live block. torch gives back a little more:
    free pages before it as well.
    """

    def __init__(self) -> None:
        self.pools: defaultdict[PoolKey, _Pool] = defaultdict(_Pool)
        self._starts: dict[PoolKey, int] = {}
        self._mapped: dict[PoolKey, int] = {}

    @property
    def reserved_bytes(self) -> int:
        return sum(self._mapped.values())

    def new_block(self, size: int, key: PoolKey) -> _Block:
        """The pool's whole range of addresses, larger than any GPU's memory, so that a pool needs only one."""
        assert key not in self._starts
        self._starts[key] = 1 + len(self._starts) * _VIRTUAL_BYTES
        return _Block(self._starts[key], _VIRTUAL_BYTES, key)

    def least_rest(self, key: PoolKey) -> int:
        return ROUNDING

    def taken(self, block: _Block) -> None:
        self._mapped[block.key] = max(self._mapped.get(block.key, 0), self._mapped_up_to(block))

    def empty_cache(self, live: Iterable[_Block]) -> None:
        self._mapped.clear()
        for block in live:
            self.taken(block)

    def _mapped_up_to(self, block: _Block) -> int:
        is_small, _ = block.key
        page = SMALL_SEGMENT if is_small else LARGE_SEGMENT
        return -(-(block.address + block.size - self._starts[block.key]) // page) * page


def reserved_peak_bytes(events: Iterable[Event], *, expandable: bool, is_late: bool = False) -> int:
    """The peak of the reserved bytes. `events` are the ledger's: one of 0 bytes frees a block.

    `is_late`: a freed block of a stream other than COMPUTE can be reused only after the next block of that stream is
    freed. torch holds such blocks back (`record_stream`) until the GPU has passed their last use.
    """
    memory = _ExpandableSegments() if expandable else _Segments()
    live: dict[int, _Block] = {}
    held_back: dict[int, _Block] = {}
    peak = 0
    for event in events:
        if event == EMPTY_CACHE:
            # torch waits for the GPU before it empties the cache, so no block is held back any more.
            for block in held_back.values():
                _free(block, memory.pools)
            held_back.clear()
            memory.empty_cache(live.values())
            continue
        number, num_bytes, stream = event
        if not num_bytes:
            gone = live.pop(number)
            _, stream = gone.key
            if not is_late or stream == COMPUTE:
                _free(gone, memory.pools)
                continue
            if stream in held_back:
                _free(held_back[stream], memory.pools)
            held_back[stream] = gone
            continue
        size = -(-num_bytes // ROUNDING) * ROUNDING
        key = (size <= SMALL_REQUEST, stream)
        pool = memory.pools[key]
        found = pool.best_fit(size)
        if found is None:
            found = memory.new_block(size, key)
        else:
            pool.remove(found)
            found.is_free = False
        live[number] = taken = _split(found, size, pool, memory.least_rest(key))
        memory.taken(taken)
        peak = max(peak, memory.reserved_bytes)
    return peak


def _segment_bytes(size: int) -> int:
    if size <= SMALL_REQUEST:
        return SMALL_SEGMENT
    if size < LARGE_REQUEST:
        return LARGE_SEGMENT
    return -(-size // ROUND_SEGMENT) * ROUND_SEGMENT


def _split(block: _Block, size: int, pool: _Pool, least_rest: int) -> _Block:
    rest = block.size - size
    if rest < least_rest:
        return block
    remainder = _Block(block.address + size, rest, block.key, True, block, block.after)
    if block.after is not None:
        block.after.before = remainder
    block.size, block.after = size, remainder
    pool.add(remainder)
    return block


def _free(block: _Block, pools: Mapping[PoolKey, _Pool]) -> None:
    pool = pools[block.key]
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
