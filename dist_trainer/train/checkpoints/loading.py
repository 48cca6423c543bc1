"""A checkpoint into an engine of any number of ranks, ZeRO stage, precision and offload: each reads what it needs."""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.data_file import BYTES_OF, DataFile
from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.index import INDEX_FILE, WEIGHT, Counters, Index, State
from dist_trainer.train import schedule
from dist_trainer.train.checkpoints import optimizer_states
from dist_trainer.train.checkpoints.capture import DTYPES, memory_of
from dist_trainer.train.checkpoints.holders import Holder, Holders, Span
from dist_trainer.train.loss_scale import restore_scaler
from dist_trainer.units import MIB

# Converted, or brought to a GPU, at a time.
_STAGED_BYTES = 64 * MIB


def load(engine: Any, holders: Holders, found: Found, *, with_random_state: bool) -> None:
    """Restores weights, the optimizer's states and counts, the reached loss scale and, if asked, random states.
    Collective.

    Rates and all other settings stay those that the engine was built with; the schedule is advanced to where it would
    be if it had been in force from the first step. The files must have been verified. Raises DamageError for files
    that can be read no longer, and for parameters or states that the engine does not have.
    """
    index = found.index
    _check_same(holders, found)
    with Reader(found.folder, index) as reader, holders.filling():
        for holder in holders.holders:
            with holder.present(True):
                if index.states:
                    optimizer_states.make([holder])
                _fill(holder, reader, found)
    optimizer_states.set_counts(
        holders.holders, index.counters.optimizer, num_steps=index.counters.steps - index.counters.skipped_steps
    )
    _set_counters(engine, index.counters)
    if with_random_state:
        _set_random_state(found)


class Reader:
    """Reads any elements of a parameter's state, wherever they lie in the files of a checkpoint."""

    def __init__(self, folder: Path, index: Index) -> None:
        self._folder = folder
        self._index = index
        self._files: dict[int, DataFile] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def read_into(self, target: Tensor, parameter: str, state: str, start: int) -> None:
        """Fills a contiguous tensor with elements from `start` on, converted to its dtype. Raises DamageError."""
        kept = self._index.parameters[parameter].states[state]
        flat = target.detach().view(-1)
        for file, offset, begin, numel in _overlaps(kept, start, start + flat.numel()):
            self._read(flat.narrow(0, begin - start, numel), file, offset, DTYPES[kept.dtype])

    def _read(self, target: Tensor, file: int, offset: int, dtype: torch.dtype) -> None:
        opened = self._open(file)
        if target.dtype == dtype and target.device.type == "cpu":
            opened.read_into(memory_of(target), offset)
            return
        step = _STAGED_BYTES // dtype.itemsize
        staged = torch.empty(min(step, target.numel()), dtype=dtype)
        for begin in range(0, target.numel(), step):
            part = target.narrow(0, begin, min(step, target.numel() - begin))
            source = staged.narrow(0, 0, part.numel())
            opened.read_into(memory_of(source), offset + begin * dtype.itemsize)
            part.copy_(source)

    def _open(self, number: int) -> DataFile:
        if number not in self._files:
            file = self._index.files[number]
            opened = DataFile(self._folder / file.name, self._folder, file.num_bytes)
            self._files[number] = self._stack.enter_context(opened)
        return self._files[number]


def _overlaps(kept: State, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """The pieces that have elements of [start, stop): file, first byte, first element, number of elements."""
    first = bisect_right(kept.pieces, start, key=lambda piece: piece.start) - 1
    for piece in kept.pieces[first:]:
        begin, end = max(piece.start, start), min(piece.stop, stop)
        if begin >= end:
            return
        yield piece.file, piece.offset + (begin - piece.start) * BYTES_OF[kept.dtype], begin, end - begin


def _check_same(holders: Holders, found: Found) -> None:
    there = {name: parameter.shape for name, parameter in found.index.parameters.items()}
    if there != dict(holders.shapes):
        name = next(name for name in (*there, *holders.shapes) if there.get(name) != holders.shapes.get(name))
        raise DamageError(
            found.folder / INDEX_FILE,
            f"has {name} of shape {there.get(name)}, and the model has one of shape {holders.shapes.get(name)}",
        )


def _fill(holder: Holder, reader: Reader, found: Found) -> None:
    states = holder.tensor_states() if found.index.states else {}
    for span in holder.spans:
        there = found.index.parameters[span.parameter].states
        for name in (WEIGHT, *states):
            if name not in there:
                raise DamageError(
                    found.folder / INDEX_FILE, f"has no {name} of {span.parameter}, which this run's optimizer keeps"
                )
            reader.read_into(_part_of(holder, name, span), span.parameter, name, span.start)


def _part_of(holder: Holder, state: str, span: Span) -> Tensor:
    held = holder.tensor if state == WEIGHT else holder.states[state]
    return held.detach().view(-1).narrow(0, span.offset, span.numel)


def _set_counters(engine: Any, counters: Counters) -> None:
    engine.global_steps = counters.steps
    engine.skipped_steps = counters.skipped_steps
    engine.micro_steps = counters.micro_steps
    engine.global_samples = counters.samples
    restore_scaler(engine, counters.loss_scaler)
    if engine.lr_scheduler is not None:
        schedule.advance(engine.lr_scheduler, counters.steps - counters.skipped_steps)


def _set_random_state(found: Found) -> None:
    """That of this rank when the checkpoint was made; with another number of ranks the run's own stay."""
    random = found.index.random
    if len(random) != dist.get_world_size():
        return
    states = {device: _tensor(text) for device, text in random[dist.get_rank()].items()}
    try:
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])
    except RuntimeError as error:
        raise DamageError(found.folder / INDEX_FILE, "has a state of a random generator that cannot be") from error


def random_state() -> dict[str, str]:
    """The states of this rank's random generators as an index has them: by device, in base64."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {device: base64.b64encode(state.numpy().tobytes()).decode() for device, state in states.items()}


def _tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text, validate=True)), dtype=torch.uint8)
