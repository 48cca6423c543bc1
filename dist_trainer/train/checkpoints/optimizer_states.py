"""The optimizer's states as it makes them itself: made before its first step, and its counts read and set.

Optimizers make their states in their first step. To fill them from a checkpoint they have to be there before it. So the
optimizer takes a step on a stand-in of a few elements, which shows what states it makes, and those are made for each
holder.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dist_trainer.train.checkpoints.holders import Holder

# Of the stand-in, in each dimension. Not one, so that a state of one number is told from one of each element.
_LENGTH = 8
# What FusedAdam of DeepSpeed keeps beside the settings of a group of parameters.
_STEP = "step"


def make(holder: Holder, saved: Mapping[str, torch.dtype]) -> None:
    """Gives a holder the states that its optimizer would make in its first step, with any values.

    `saved`: states with a value for each element that the optimizer had when it was saved. Those are made even if no
    step of the optimizer makes them: of Muon's momentum DeepSpeed takes care itself.
    """
    tensor = holder.tensor
    states = holder.optimizer.state[tensor]
    for name, value in _of_stand_in(holder).items():
        if name not in states:
            states[name] = _like(value, tensor)
    for name, dtype in saved.items():
        if name not in states and not any(torch.is_tensor(value) and value.dim() for value in states.values()):
            states[name] = torch.zeros_like(tensor, dtype=dtype, requires_grad=False)


def counts(holders: Iterable[Holder]) -> dict[str, float]:
    """What the optimizer counts, by name: numbers that are the same for all parameters, such as its steps."""
    found: dict[str, float] = {}
    for holder in holders:
        for name, value in (*holder.states.items(), *_of_group(holder).items()):
            number = _number(value)
            if number is not None:
                found[name] = max(number, found.get(name, number))
    return found


def set_counts(holders: Iterable[Holder], values: Mapping[str, float], *, num_steps: int) -> None:
    """Sets what `counts` read. An optimizer that counts steps, where the one before did not, gets `num_steps`."""
    known = {_STEP: float(num_steps), **values}
    for holder in holders:
        for place in (holder.states, holder.optimizer.param_groups[holder.group]):
            for name in known.keys() & place.keys():
                _set(place, name, known[name])


def _of_stand_in(holder: Holder) -> dict[str, Any]:
    """The states that the optimizer makes of a small tensor in a step of its own."""
    optimizer = holder.optimizer
    shape = [_LENGTH] * holder.tensor.dim()
    tensor = torch.zeros(shape, dtype=holder.tensor.dtype, device=holder.tensor.device, requires_grad=True)
    tensor.grad = torch.zeros_like(tensor)
    groups = optimizer.param_groups
    # Copies, because some optimizers count their steps there.
    optimizer.param_groups = [{**group, "params": []} for group in groups]
    stand_in = optimizer.param_groups[holder.group]
    stand_in["params"] = [tensor]
    try:
        optimizer.step()
    finally:
        optimizer.param_groups = groups
    if _STEP in stand_in:
        groups[holder.group].setdefault(_STEP, 0)
    return dict(optimizer.state.pop(tensor, {}))


def _like(value: Any, tensor: Tensor) -> Any:
    """A state of the stand-in, made for a tensor of another size."""
    if not torch.is_tensor(value):
        return copy.copy(value)
    if value.dim() == 0:
        return value.clone()
    shape = [ours if length == _LENGTH else length for ours, length in zip(tensor.shape, value.shape, strict=True)]
    return torch.zeros(shape, dtype=value.dtype, device=value.device, pin_memory=value.is_pinned())


def _of_group(holder: Holder) -> dict[str, Any]:
    group = holder.optimizer.param_groups[holder.group]
    return {_STEP: group[_STEP]} if _STEP in group else {}


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    return float(value) if torch.is_tensor(value) and value.dim() == 0 else None


def _set(states: dict[str, Any], name: str, number: float) -> None:
    if torch.is_tensor(states[name]):
        states[name].fill_(number)
    else:
        states[name] = type(states[name])(number)
