"""A checkpoint into an engine of any number of ranks, ZeRO stage, precision and offload: each reads what it needs."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.index import INDEX_FILE, WEIGHT, Counters, Index
from dist_trainer.exchange.gpt2_form import weights_of
from dist_trainer.exchange.initial import Initial
from dist_trainer.exchange.reading import DTYPES, Reader
from dist_trainer.exchange.weights import WholeTensors
from dist_trainer.train import schedule
from dist_trainer.train.checkpoints import optimizer_states
from dist_trainer.train.checkpoints.holders import Holder, Holders
from dist_trainer.train.loss_scale import restore_scaler


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
                    optimizer_states.make(holder, _states_of_elements(holder, index))
                _fill(holder, reader, found)
    optimizer_states.set_counts(
        holders.holders, index.counters.optimizer, num_steps=index.counters.steps - index.counters.skipped_steps
    )
    _set_counters(engine, index.counters)
    if with_random_state:
        _set_random_state(found)


def load_weights(holders: Holders, initial: Initial) -> None:
    """Fills the weights alone, for a run that begins with them. Collective.

    The files of a checkpoint of this program must have been verified. Raises DamageError for files that can be read no
    longer, and for parameters that the engine does not have.
    """
    source = initial.source
    if isinstance(source, Found):
        _check_same(holders, source)
        with Reader(source.folder, source.index) as reader:
            _fill_weights(holders, reader)
    else:
        there = {weight.ours: weight.shape for weight in weights_of(source.shape)}
        _check_shapes(holders, there, source.folder)
        _fill_weights(holders, WholeTensors(source.read))


def _fill_weights(holders: Holders, reader: Reader | WholeTensors) -> None:
    with holders.filling():
        for holder in holders.holders:
            with holder.present(True):
                for span in holder.spans:
                    target = holder.elements(WEIGHT, span.offset, span.numel)
                    reader.read_into(target, span.parameter, WEIGHT, span.start)


def _check_same(holders: Holders, found: Found) -> None:
    there = {name: parameter.shape for name, parameter in found.index.parameters.items()}
    _check_shapes(holders, there, found.folder / INDEX_FILE)


def _check_shapes(holders: Holders, there: Mapping[str, tuple[int, ...]], where: Path) -> None:
    if there != dict(holders.shapes):
        name = next(name for name in (*there, *holders.shapes) if there.get(name) != holders.shapes.get(name))
        raise DamageError(
            where,
            f"has {name} of shape {there.get(name)}, and the model has one of shape {holders.shapes.get(name)}",
        )


def _states_of_elements(holder: Holder, index: Index) -> dict[str, torch.dtype]:
    """The optimizer's states of a holder's parameters that have a value for each element, with their dtypes."""
    return {
        name: DTYPES[state.dtype]
        for span in holder.spans
        for name, state in index.parameters[span.parameter].states.items()
        if name != WEIGHT and state.num_elements is None
    }


def _fill(holder: Holder, reader: Reader, found: Found) -> None:
    states = holder.tensor_states() if found.index.states else {}
    for name in (WEIGHT, *states):
        each = holder.has_each_element(name)
        for span in holder.spans_of(name):
            kept = found.index.parameters[span.parameter].states.get(name)
            if kept is None or kept.num_elements != (None if each else span.numel):
                raise DamageError(
                    found.folder / INDEX_FILE,
                    f"has no {name} of {span.parameter} in the shape in which this run's optimizer keeps it",
                )
            reader.read_into(holder.elements(name, span.offset, span.numel), span.parameter, name, span.start)


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
