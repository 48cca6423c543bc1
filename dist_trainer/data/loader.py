"""Micro batches of tokens for one rank, in exact order, prefetched by worker processes.

Workers send raw tokens (two or four bytes each) through pipes, and the rank makes tensors of them. torch would pass the
workers' tensors through /dev/shm at eight bytes a token, and a container may have only 64 MB there.
"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
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
# Longer than a file server needs to restart.
_STUCK_AFTER_S = 300
_KILL_WAIT_S = 1.0
_SIGNALS_OF_THE_RANK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Computing the windows of 8192 samples takes 3 ms, of one sample 0.1 ms, of one micro batch of 64 0.5 ms.
_WINDOWS_AHEAD = 8192


class Batch(NamedTuple):
    """Two int64 tensors [micro_batch, sequence_length]; each target is the token that follows its input."""

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

    Epochs follow each other without a gap. Each worker prefetches `prefetch_factor` micro batches; without workers
    nothing is prefetched. Close the loader, or use it as a context manager.
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
        worker_init_fn=_leave_signals_to_the_rank,
        # Without a generator of its own the loader would draw its workers' seeds from the one that the model uses.
        generator=torch.Generator(),
        # Fork is safe: the workers only read a file, and touch neither the device nor locks of the rank's threads.
        multiprocessing_context="fork" if num_workers else None,
        timeout=_LOOK_EVERY_S if num_workers else 0,
    )
    return BatchLoader(loader, source=str(tokens.path))


class BatchLoader:
    """Each iteration starts again from the first step, with the same workers. Raises UserError if a batch cannot be
    read.

    Used as a context manager it also explains a dead worker, which torch raises (from SIGCHLD) wherever the rank
    happens to be: RunError then, and when the workers deliver nothing any more; UserError if workers cannot be started.
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
        with _signals_blocked():
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
            # Counts only the time spent waiting here: a run that SLURM suspends for an hour is not stuck.
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
        """Ends the workers and waits for them. May be called more than once."""
        batches, self._batches, self._loader = self._batches, None, None
        # DataLoader has no public close. Its iterator shuts the workers down when it is collected, but a traceback that
        # is still referenced would delay that.
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()

    def _kill(self) -> None:
        """Kills all workers if one is dead or stuck: torch would wait for it, and a stopped process ignores SIGTERM."""
        workers, batches = self._workers(), self._batches
        if not workers:
            return
        # torch's SIGCHLD handler would raise for each of them.
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
    """An error on its way out of a worker. Raised there, torch would turn it into the text of a traceback."""

    error: UserError


@dataclass(frozen=True)
class _Rows:
    """[micro_batch, sequence_length + 1] tokens in the file's dtype. As a tensor they would travel through /dev/shm."""

    tokens: npt.NDArray[Any]

    def batch(self) -> Batch:
        # Each is converted by itself, which makes it contiguous: views of one conversion would have to be copied.
        inputs, targets = self.tokens[:, :-1].astype(np.int64), self.tokens[:, 1:].astype(np.int64)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))

    def pin_memory(self) -> Batch:
        """torch's pinning thread calls this by its name."""
        return Batch(*(tensor.pin_memory() for tensor in self.batch()))


class _MicroBatches(Dataset[_Rows | _Failure]):
    def __init__(self, tokens: TokenFile, plan: BatchPlan, rank: int) -> None:
        self._tokens = tokens
        self._plan = plan
        self._rank = rank
        self._ahead: dict[int, npt.NDArray[np.int64]] = {}

    def __getitem__(self, number: int) -> _Rows | _Failure:
        try:
            return self._read(self._windows(number))
        except UserError as error:
            return _Failure(error)

    def _windows(self, number: int) -> npt.NDArray[np.int64]:
        """The windows of micro batch `number`. They are computed for many micro batches at once."""
        if number not in self._ahead:
            worker = get_worker_info()
            # Workers take turns: this one will be asked for every num_workers-th.
            stride = worker.num_workers if worker else 1
            numbers = number + stride * np.arange(-(-_WINDOWS_AHEAD // self._plan.micro_batch))
            windows = self._plan.windows(*np.divmod(numbers, self._plan.accumulation), self._rank)
            self._ahead = dict(zip(numbers.tolist(), windows, strict=True))
        return self._ahead[number]

    def _read(self, windows: npt.NDArray[np.int64]) -> _Rows:
        length = self._plan.order.sequence_length
        starts = windows * length
        rows = self._tokens.read_rows(starts, length + 1)
        if rows.max() >= self._tokens.token_limit:
            for row, start in zip(rows, starts.tolist(), strict=True):
                self._tokens.check(row, start)
        return _Rows(rows)


def _as_it_is(item: Any) -> Any:
    return item


def _leave_signals_to_the_rank(worker: int) -> None:
    """Signals reach a whole process group, or every process of a job; the rank may go on needing its workers."""
    for number in _SIGNALS_OF_THE_RANK:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS_OF_THE_RANK)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """For workers that are forked meanwhile: until they ignore these signals, none may end them."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS_OF_THE_RANK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _check_that_workers_can_start(num_workers: int) -> None:
    """Makes the semaphores that torch's workers will need, and frees them: torch's own failure would hide the cause."""
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
    """A process's exit code as `multiprocessing` gives it: 1 -> 'status 1', -9 -> 'SIGKILL'."""
    return f"status {status}" if status >= 0 else signal.Signals(-status).name


def _state(pid: int) -> str:
    try:
        return psutil.Process(pid).status()
    except psutil.Error:
        return "gone"
