"""Micro batches of tokens for one rank, in exact order, read ahead by worker processes.

What workers hand over goes through pipes, as the file's own two or four bytes a token, and becomes tensors in the rank:
torch would pass a worker's tensors on in /dev/shm, at eight bytes a token, of which a container may have only 64 MB.
"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from dist_trainer.data.sampler import BatchPlan
from dist_trainer.data.tokens import TokenFile
from dist_trainer.errors import RunError, UserError
from dist_trainer.logs import LOGGER_NAME
from dist_trainer.units import format_bytes

_SHARED_MEMORY = Path("/dev/shm")
_KEY = "data.num_workers"
_LOOK_EVERY_S = 5
_TELL_AFTER_S = 30
# Longer than a file server takes to start again.
_STUCK_AFTER_S = 300
_KILL_WAIT_S = 1.0


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
    loader: DataLoader[_Rows | _Failure] = DataLoader(
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
        timeout=_LOOK_EVERY_S if num_workers else 0,
    )
    return BatchLoader(loader, source=str(tokens.path))


class BatchLoader:
    """Each iteration starts over from the first step, in the same workers. Raises UserError where a batch fails.

    As a context manager it also says what has become of a worker that is dead: torch raises that wherever the rank
    just is. RunError then, and where workers give nothing any more; UserError where they cannot be started.
    """

    def __init__(self, loader: DataLoader[_Rows | _Failure], source: str) -> None:
        self._loader: DataLoader[_Rows | _Failure] | None = loader
        self._source = source
        self._batches: Any = None

    def __len__(self) -> int:
        assert self._loader is not None, "the loader is closed"
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        assert self._loader is not None, "the loader is closed"
        if self._batches is None:
            _check_that_workers_can_start(self._loader.num_workers)
        self._batches = iter(self._loader)
        while self._batches is not None:
            item = self._next()
            if item is None:
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item.batch() if isinstance(item, _Rows) else item

    def _next(self) -> Any:
        waited_s = 0
        while True:
            try:
                return next(self._batches, None)
            except RuntimeError as error:
                if "timed out" not in str(error):
                    raise
            # Only what was waited for here counts: a run that SLURM suspends for an hour is not stuck.
            waited_s += _LOOK_EVERY_S
            if waited_s >= _STUCK_AFTER_S or self._dead_workers():
                raise self._stuck(waited_s)
            if waited_s == _TELL_AFTER_S:
                logging.getLogger(LOGGER_NAME).warning("%s", self._stuck(waited_s))

    def _stuck(self, waited_s: int) -> RunError:
        return RunError(
            f"the processes that read data have given nothing for {waited_s} s",
            where=self._source,
            key=_KEY,
            found=", ".join(f"process {worker.pid}: {_state(worker.pid)}" for worker in self._workers()),
            hint="look whether the file system answers (disk-sleep: it does not), or who stopped them",
        )

    def _workers(self) -> list[Any]:
        return list(getattr(self._batches, "_workers", ()))

    def _dead_workers(self) -> list[Any]:
        return [worker for worker in self._workers() if worker.exitcode is not None]

    def close(self) -> None:
        """Ends the workers and waits for them; again is no error."""
        batches, self._batches, self._loader = self._batches, None, None
        # DataLoader has no public close. It does this when its iterator is collected, and a traceback that is still
        # held would put that off.
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()

    def _kill(self) -> None:
        """Ends workers of which one is dead or stuck: torch would wait for it, and what is stopped hears no SIGTERM."""
        workers, batches = self._workers(), self._batches
        if not workers:
            return
        # Its handler of SIGCHLD would raise for each of them.
        signal_handling._remove_worker_pids(id(batches))  # type: ignore[attr-defined]
        batches._shutdown, batches._worker_pids_set = True, False
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(_KILL_WAIT_S)

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        dead = [f"process {worker.pid}: {_end(worker.exitcode)}" for worker in self._dead_workers()]
        if isinstance(error, RuntimeError | RunError):
            self._kill()
        self.close()
        if dead and isinstance(error, RuntimeError | RunError):
            raise RunError(
                "a process that reads data for this rank has died",
                where=self._source,
                key=_KEY,
                found=", ".join(dead),
                hint="SIGKILL is somebody's, or the kernel's where memory ends (dmesg says so); fewer workers take "
                f"less of it, and with {_KEY}=0 the rank reads itself",
            ) from error


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker: raised there, torch would turn it into the text of a traceback."""

    error: UserError


@dataclass(frozen=True)
class _Rows:
    """[micro_batch, sequence_length + 1] tokens as the file has them. Not a tensor, which torch puts into /dev/shm."""

    tokens: npt.NDArray[Any]

    def batch(self) -> Batch:
        block = torch.from_numpy(self.tokens.astype(np.int64))
        return Batch(block[:, :-1].contiguous(), block[:, 1:].contiguous())

    def pin_memory(self) -> Batch:
        """What torch's pinning thread asks for."""
        return Batch(*(tensor.pin_memory() for tensor in self.batch()))


class _MicroBatches(Dataset[_Rows | _Failure]):
    def __init__(self, tokens: TokenFile, plan: BatchPlan, rank: int) -> None:
        self._tokens = tokens
        self._plan = plan
        self._rank = rank

    def __getitem__(self, number: int) -> _Rows | _Failure:
        step, micro_step = divmod(number, self._plan.accumulation)
        try:
            return self._read(self._plan.windows(step, micro_step, self._rank))
        except UserError as error:
            return _Failure(error)

    def _read(self, windows: list[int]) -> _Rows:
        length = self._plan.order.sequence_length
        rows = []
        for window in windows:
            rows.append(self._tokens.read(window * length, length + 1))
            self._tokens.check(rows[-1], window * length)
        return _Rows(np.stack(rows))


def _as_it_is(item: Any) -> Any:
    return item


def _leave_interrupts_to_the_rank(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_that_workers_can_start(num_workers: int) -> None:
    """Makes what they share with the rank, and gives it back: half made, torch's own would say more than the cause."""
    if not num_workers:
        return
    context = multiprocessing.get_context("fork")
    try:
        _ = [context.Event(), *(context.Queue() for _ in range(1 + num_workers))]
    except OSError as error:
        raise UserError(
            "the processes that read data cannot be started",
            key=_KEY,
            found=f"{num_workers} ({error.strerror}; {_shared_memory()})",
            expected=f"room for their semaphores in {_SHARED_MEMORY}: {4 * (8 + 3 * num_workers)} KiB",
            hint=f"make room in {_SHARED_MEMORY} (docker run --shm-size), or let the rank read itself: --set {_KEY}=0",
        ) from error


def _shared_memory() -> str:
    try:
        usage = shutil.disk_usage(_SHARED_MEMORY)
    except OSError as error:
        return f"{_SHARED_MEMORY}: {error.strerror}"
    return f"{_SHARED_MEMORY} has {format_bytes(usage.free)} free of {format_bytes(usage.total)}"


def _end(status: int) -> str:
    """Of a process, as `multiprocessing` says it: 1 -> 'status 1', -9 -> 'SIGKILL'."""
    return f"status {status}" if status >= 0 else signal.Signals(-status).name


def _state(pid: int) -> str:
    try:
        return psutil.Process(pid).status()
    except psutil.Error:
        return "gone"
