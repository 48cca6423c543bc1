"""Who holds how many bytes: allocations by part, with the peak of each phase and what it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from dist_trainer.memory.plan import PhaseName

PARTS = (
    "activations",
    "logits and loss",
    "parameters",
    "gradients",
    "optimizer states",
    "master weights",
    "buckets",
    "gathered parameters",
    "step temporaries",
)
(ACTIVATIONS, LOSS, PARAMETERS, GRADIENTS, STATES, MASTER, BUCKETS, GATHERED, TEMPORARIES) = range(len(PARTS))

# The CUDA streams on which blocks are allocated: torch's allocator keeps a pool for each.
COMPUTE, REDUCTION, GATHERING = range(3)

# A block's number, its bytes (0 where it is freed), its stream.
Event = tuple[int, int, int]
EMPTY_CACHE: Event = (0, 0, COMPUTE)


class Block(NamedTuple):
    """One allocation. `size`: the bytes asked for, rounded up as the device's allocator counts them."""

    number: int
    size: int
    part: int


def pinned(num_bytes: int) -> int:
    """What torch's allocator of pinned memory takes for a request: the next power of two (CachingHostAllocator.h)."""
    return 1 << (num_bytes - 1).bit_length() if num_bytes else 0


class Ledger:
    """Counts allocated bytes. `rounding`: the allocator counts multiples of so many bytes (CUDA 512, CPU 1).

    `events`, if kept, is the whole history, for a replay. `peaks`: phase -> (bytes in all, bytes of each part).
    """

    def __init__(self, rounding: int, *, keep_events: bool) -> None:
        self.total = 0
        self.peaks: dict[PhaseName, tuple[int, list[int]]] = {}
        self.events: list[Event] | None = [] if keep_events else None
        self._rounding = rounding
        self._live = [0] * len(PARTS)
        self._count = 0
        self._peak = 0
        self._phase: PhaseName = "init"

    def alloc(self, num_bytes: int, part: int, stream: int = COMPUTE) -> Block:
        size = -(-num_bytes // self._rounding) * self._rounding
        self._count += 1
        self.total += size
        self._live[part] += size
        if self.events is not None and size:
            self.events.append((self._count, size, stream))
        if self.total > self._peak:
            self._peak = self.total
            self.peaks[self._phase] = (self.total, self._live.copy())
        return Block(self._count, size, part)

    def free(self, block: Block | None) -> None:
        """Frees a block; None is nothing to free."""
        if block is None:
            return
        self.total -= block.size
        self._live[block.part] -= block.size
        if self.events is not None and block.size:
            self.events.append((block.number, 0, COMPUTE))

    def empty_cache(self) -> None:
        """Records that the caching allocator is told to give back what it holds unused."""
        if self.events is not None:
            self.events.append(EMPTY_CACHE)

    def moved(self, block: Block, part: int) -> Block:
        """The same bytes under another part: activations that turn out to be a gradient."""
        self._live[block.part] -= block.size
        self._live[part] += block.size
        return Block(block.number, block.size, part)

    def enter(self, phase: PhaseName) -> None:
        """From here on peaks count for this phase; it begins with what is held now."""
        self._phase = phase
        self._peak = self.peaks.get(phase, (0, []))[0]
        if self.total > self._peak:
            self._peak = self.total
            self.peaks[phase] = (self.total, self._live.copy())

    @contextmanager
    def temporary(self, num_bytes: int, part: int = TEMPORARIES, stream: int = COMPUTE) -> Iterator[None]:
        block = self.alloc(num_bytes, part, stream)
        yield
        self.free(block)
