"""How fast the data path is by itself: tokens per second by worker count and micro batch, against a plain read.

The data path reads windows as one rank of a training run does, in its order; the plain read takes the same file from
its first byte to its last. Between them stands the plain read made into int64 micro batches, as a model takes them: the
most that a data path in one process could give.

All are measured in passes over the whole file, with the file in the page cache (warm), or after the kernel was asked to
drop it before every pass (cold). A pass that does not count comes first: in it the workers start, and a warm file gets
into the cache.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from dist_trainer.data.loader import Batch, BatchLoader, build_loader
from dist_trainer.data.sampler import BatchPlan, Order
from dist_trainer.data.tokens import TokenFile
from dist_trainer.units import MIB, counted, format_count

NUM_WORKERS = (0, 1, 2, 4)
MICRO_BATCHES = (1, 4, 16, 64)
# Passes follow each other until they have taken this long; one over a file too large for that is broken off.
_MEASURE_S = 0.5
_NUM_TRIES = 3


@dataclass(frozen=True)
class Rate:
    """Tokens per second of one way to read, the median of `_NUM_TRIES`.

    `num_workers` None: the plain read, of bytes alone (`micro_batch` 0) or made into micro batches.
    """

    num_workers: int | None
    micro_batch: int
    is_warm: bool
    tokens_per_s: float


def measure(tokens: TokenFile, *, sequence_length: int, say: Callable[[str], None]) -> list[Rate]:
    """Measures all ways to read once per try, in alternating order, so that other load slows all of them alike."""
    readers = [(None, 0), *itertools.product((None, *NUM_WORKERS), MICRO_BATCHES)]
    ways = [(workers, micro, warm) for workers, micro in readers for warm in (True, False)]
    found: dict[tuple[int | None, int, bool], list[float]] = {way: [] for way in ways}
    for number in range(_NUM_TRIES):
        say(f"try {number + 1} of {_NUM_TRIES}: {len(ways)} ways to read {tokens.path}")
        for way in ways if number % 2 == 0 else reversed(ways):
            found[way].append(_tokens_per_s(tokens, sequence_length, *way))
    return [Rate(*way, median(rates)) for way, rates in found.items()]


def table(rates: Sequence[Rate]) -> list[str]:
    """Lines for a person: the best of each number of workers and its micro batch, and its share of the plain read."""
    lines = []
    for warm, name in ((True, "warm"), (False, "cold")):
        plain = next(rate.tokens_per_s for rate in rates if rate.micro_batch == 0 and rate.is_warm is warm)
        lines.append(f"{name}  plain read, from first byte to last: {format_count(plain)} tokens/s")
        for workers in (None, *NUM_WORKERS):
            reads = "made into micro batches" if workers is None else counted(workers, "worker")
            best = max(
                (rate for rate in rates if rate.num_workers == workers and rate.micro_batch and rate.is_warm is warm),
                key=lambda rate: rate.tokens_per_s,
            )
            lines.append(
                f"      {reads}: {format_count(best.tokens_per_s)} tokens/s at micro batch "
                f"{best.micro_batch}, {best.tokens_per_s / plain:.0%} of the plain read"
            )
    return lines


def _tokens_per_s(
    tokens: TokenFile, sequence_length: int, num_workers: int | None, micro_batch: int, is_warm: bool
) -> float:
    if micro_batch == 0:
        return _rate(lambda: _plain_read(tokens), tokens, is_warm)
    order = Order(tokens.num_tokens, sequence_length, sequence_length, seed=0)
    if num_workers is None:
        return _rate(lambda: _plain_batches(tokens, order, micro_batch), tokens, is_warm)
    plan = BatchPlan(order, micro_batch, accumulation=1, world_size=1)
    loader = build_loader(
        tokens,
        plan,
        rank=0,
        num_steps=max(1, order.num_windows // micro_batch),
        num_workers=num_workers,
        prefetch_factor=2,
        pin_memory=False,
    )
    with loader:
        return _rate(lambda: _data_path(loader), tokens, is_warm)


def _data_path(loader: BatchLoader) -> Iterator[int]:
    for batch in loader:
        yield batch.inputs.numel()


def _plain_read(tokens: TokenFile) -> Iterator[int]:
    block = bytearray(MIB)
    with tokens.path.open("rb", buffering=0) as file:
        while num_bytes := file.readinto(block):
            yield num_bytes // np.dtype(tokens.dtype).itemsize


def _plain_batches(tokens: TokenFile, order: Order, micro_batch: int) -> Iterator[int]:
    count = micro_batch * order.sequence_length
    for start in range(0, tokens.num_tokens - count, count):
        block = tokens.read(start, count + 1)
        inputs, targets = (torch.from_numpy(part.astype(np.int64)) for part in (block[:-1], block[1:]))
        yield Batch(inputs.view(micro_batch, -1), targets.view(micro_batch, -1)).inputs.numel()


def _rate(one_pass: Callable[[], Iterator[int]], tokens: TokenFile, is_warm: bool) -> float:
    """Tokens per second; `one_pass` gives the tokens of each piece that it reads. The clock stands between passes."""
    _timed(one_pass())
    num_tokens, spent_s = 0, 0.0
    while spent_s < _MEASURE_S:
        if not is_warm:
            drop_from_cache(str(tokens.path))
        pass_tokens, pass_s = _timed(one_pass())
        num_tokens, spent_s = num_tokens + pass_tokens, spent_s + pass_s
    return num_tokens / spent_s


def _timed(sizes: Iterator[int]) -> tuple[int, float]:
    begin_s, num_tokens, spent_s = time.perf_counter(), 0, 0.0
    for size in sizes:
        num_tokens += size
        spent_s = time.perf_counter() - begin_s
        if spent_s >= _MEASURE_S:
            break
    return num_tokens, spent_s


def drop_from_cache(path: str) -> None:
    """Asks the kernel to drop the file's pages; those that another process has mapped stay."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
