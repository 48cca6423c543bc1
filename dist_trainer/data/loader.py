"""Micro batches of tokens for one rank, in exact order, read ahead by worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dist_trainer.data.sampler import BatchPlan
from dist_trainer.data.tokens import TokenFile
from dist_trainer.errors import UserError


class Batch(NamedTuple):
    """int64 [micro_batch, sequence_length] each; a target is the token after its input."""

    inputs: torch.Tensor
    targets: torch.Tensor


def build_loader(
    tokens: TokenFile,
    plan: BatchPlan,
    *,
    rank: int,
    num_steps: int,
    num_workers: int,
    prefetch_factor: int,
    pin_memory: bool,
) -> BatchLoader:
    """The micro batches of `rank` for the plan's first `num_steps` steps.

    The data's epochs follow one another without a seam. `prefetch_factor` is how many micro batches each worker reads
    ahead; with no workers nothing is. Close the loader, or use it as a context manager.
    """
    loader: DataLoader[Batch | _Failure] = DataLoader(
        _MicroBatches(tokens, plan, rank),
        batch_size=None,
        sampler=range(num_steps * plan.accumulation),
        collate_fn=_as_it_is,
        num_workers=num_workers,
        prefetch_factor=prefetch_factor if num_workers else None,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=_leave_interrupts_to_the_rank,
        # Without one of its own, the loader draws its workers' seeds from the generator that the model uses.
        generator=torch.Generator(),
        # The workers only read a file: they never touch the device, nor what other threads of the rank hold.
        multiprocessing_context="fork" if num_workers else None,
    )
    return BatchLoader(loader)


class BatchLoader:
    """Each iteration starts over from the first step, in the same workers. Raises UserError where a batch fails."""

    def __init__(self, loader: DataLoader[Batch | _Failure]) -> None:
        self._loader: DataLoader[Batch | _Failure] | None = loader
        self._batches: Any = None

    def __len__(self) -> int:
        assert self._loader is not None, "the loader is closed"
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        assert self._loader is not None, "the loader is closed"
        self._batches = iter(self._loader)
        while self._batches is not None:
            item = next(self._batches, None)
            if item is None:
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item

    def close(self) -> None:
        """Ends the workers and waits for them; again is no error."""
        batches, self._batches, self._loader = self._batches, None, None
        # DataLoader has no public close. It does this when its iterator is collected, and a traceback that is still
        # held would put that off.
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker: raised there, torch would turn it into the text of a traceback."""

    error: UserError


class _MicroBatches(Dataset[Batch | _Failure]):
    def __init__(self, tokens: TokenFile, plan: BatchPlan, rank: int) -> None:
        self._tokens = tokens
        self._plan = plan
        self._rank = rank

    def __getitem__(self, number: int) -> Batch | _Failure:
        step, micro_step = divmod(number, self._plan.accumulation)
        try:
            return self._read(self._plan.windows(step, micro_step, self._rank))
        except UserError as error:
            return _Failure(error)

    def _read(self, windows: list[int]) -> Batch:
        length = self._plan.order.sequence_length
        rows = np.empty((len(windows), length + 1), dtype=np.int64)
        for row, window in zip(rows, windows, strict=True):
            start = window * length
            row[:] = self._tokens.tokens[start : start + length + 1]
            self._tokens.check(row, start)
        block = torch.from_numpy(rows)
        return Batch(block[:, :-1].contiguous(), block[:, 1:].contiguous())


def _as_it_is(item: Any) -> Any:
    return item


def _leave_interrupts_to_the_rank(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
