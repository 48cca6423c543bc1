"""Where a DeepSpeed engine keeps this rank's part of each parameter: one addressing for every ZeRO stage.

An optimizer updates tensors that are not the model's parameters: fp32 copies of them, flattened into one tensor a group
and divided among the ranks, or cut into sub-groups. Here such a tensor is a *holder*; its spans say which elements of
which parameters lie where in it. The optimizer's states are tensors of the same length, so the spans hold for them too.

Sources in DeepSpeed 0.19.8: utils/tensor_fragment.py (addresses of stages 1 and 2, and of BF16_Optimizer),
runtime/zero/stage3.py (grad_position, swapping), runtime/fp16/fused_optimizer.py, runtime/fp16/unfused_optimizer.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dist_trainer.checkpoints.index import WEIGHT

# Whose rows a padded vocabulary adds to (`model.pad_vocab`). Its shape in a checkpoint is that without the padding.
_PADDED = "token_embedding.weight"


@dataclass(frozen=True)
class Span:
    """Elements [start, start + numel) of a flattened parameter, or of a state of it, lie at [offset, offset + numel) of
    a holder.
    """

    parameter: str
    start: int
    numel: int
    offset: int


@dataclass(frozen=True, eq=False)
class Holder:
    """`tensor`: by which `optimizer` knows its states. `present`: a context in which its content is in memory, and
    written back at the end if it is entered with True; of use where DeepSpeed keeps it on NVMe.
    """

    tensor: Tensor
    spans: tuple[Span, ...]
    optimizer: Any
    group: int
    present: Callable[[bool], AbstractContextManager[None]] = field(default=lambda changes: nullcontext())
    is_on_nvme: bool = False

    @property
    def states(self) -> dict[str, Any]:
        """The optimizer's states of it, by name; empty before its first step."""
        found: dict[str, Any] = self.optimizer.state.get(self.tensor, {})
        return found

    def elements(self, state: str, offset: int, numel: int) -> Tensor:
        """Elements from `offset` on of its weight or a state of it, flat; writing to them changes the holder."""
        held = self.tensor if state == WEIGHT else self.states[state]
        return held.detach().view(-1).narrow(0, offset, numel)

    def tensor_states(self) -> dict[str, Tensor]:
        """Those that are not a number: with a value for each element, or of a parameter in another shape."""
        return {name: value for name, value in self.states.items() if torch.is_tensor(value) and value.dim() > 0}

    def has_each_element(self, state: str) -> bool:
        """Whether a state has a value for each element. Muon's momentum lacks those of a partition's padding."""
        end = max((span.offset + span.numel for span in self.spans), default=0)
        return state == WEIGHT or end <= self.states[state].numel() <= self.tensor.numel()

    def spans_of(self, state: str) -> tuple[Span, ...]:
        """Where a state's elements lie. One that has not a value for each element is that of one parameter."""
        if self.has_each_element(state):
            return self.spans
        (whole,) = self.spans
        numel = self.states[state].numel()
        if self.states[state].shape[0] == self.tensor.shape[0]:
            # Of the rows without padding.
            numel = numel * whole.numel // self.tensor.numel()
        return (Span(whole.parameter, 0, numel, 0),)


@dataclass(frozen=True)
class Holders:
    """`shapes`: of each parameter as a checkpoint has it, without padding. `replicated`: every rank has all of it.

    `filling`: a context, collective, in which the holders may be filled; at its end the model's weights are theirs.
    """

    holders: tuple[Holder, ...]
    shapes: Mapping[str, tuple[int, ...]]
    replicated: bool
    filling: Callable[[], AbstractContextManager[None]]


def holders_of(engine: Any, vocab_size: int) -> Holders:
    """Of an engine that `build_engine` made, whose token embedding may have rows beyond `vocab_size`."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    optimizer = engine.optimizer
    named = _Named.of(engine, vocab_size)
    before, after = _nothing, _nothing
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        found = _stage3(optimizer, named)
        before, after = optimizer.checkpoint_event_prologue, optimizer.checkpoint_event_epilogue
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        found = _by_fragments(optimizer, named, optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups)
        after = optimizer.update_lp_params
    elif isinstance(optimizer, BF16_Optimizer):
        found = _by_fragments(optimizer, named, optimizer.bf16_groups, optimizer.fp32_groups_flat_partition)
        after = optimizer.update_lp_params
    elif isinstance(optimizer, FP16_Optimizer):
        found = _flattened(optimizer, named)
        after = partial(_copy_flattened, optimizer)
    elif isinstance(optimizer, FP16_UnfusedOptimizer):
        found = _one_by_one(optimizer.optimizer, named, optimizer.fp16_groups, optimizer.fp32_groups)
        after = partial(_copy_one_by_one, optimizer)
    else:
        groups = [group["params"] for group in optimizer.param_groups]
        found = _one_by_one(optimizer, named, groups, groups)
    return Holders(tuple(found), named.shapes, not engine.zero_optimization(), partial(_filling, before, after))


@contextmanager
def _filling(before: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
    before()
    with torch.no_grad():
        yield
        after()


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class _Named:
    """Names of the model's parameters, and their shapes without padding."""

    names: dict[Tensor, str]
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, engine: Any, vocab_size: int) -> _Named:
        names, shapes = {}, {}
        for name, parameter in engine.module.named_parameters():
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            names[parameter] = name
            shapes[name] = (vocab_size, *shape[1:]) if name == _PADDED else shape
        return cls(names, shapes)

    def spans(self, parameter: Tensor, *, start: int, numel: int, offset: int) -> Iterator[Span]:
        """One span without the padding behind the parameter's last element, or none."""
        name = self.names[parameter]
        numel = min(numel, max(0, math.prod(self.shapes[name]) - start))
        if numel > 0:
            yield Span(name, start, numel, offset)


def _one_by_one(
    optimizer: Any, named: _Named, parameters: Sequence[Sequence[Tensor]], held: Sequence[Sequence[Tensor]]
) -> Iterator[Holder]:
    for group, (ours, theirs) in enumerate(zip(parameters, held, strict=True)):
        for parameter, tensor in zip(ours, theirs, strict=True):
            spans = named.spans(parameter, start=0, numel=tensor.numel(), offset=0)
            yield Holder(tensor, tuple(spans), optimizer, group)


def _copy_one_by_one(optimizer: Any) -> None:
    for weights, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        for weight, master in zip(weights, masters, strict=True):
            weight.data.copy_(master.data)


def _flattened(optimizer: Any, named: _Named) -> Iterator[Holder]:
    for group, (parameters, flat) in enumerate(zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True)):
        spans: list[Span] = []
        offset = 0
        for parameter in parameters:
            spans.extend(named.spans(parameter, start=0, numel=parameter.numel(), offset=offset))
            offset += parameter.numel()
        yield Holder(flat, tuple(spans), optimizer.optimizer, group)


def _copy_flattened(optimizer: Any) -> None:
    for weights, flat in zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True):
        offset = 0
        for weight in weights:
            weight.data.view(-1).copy_(flat.data.narrow(0, offset, weight.numel()))
            offset += weight.numel()


def _by_fragments(
    optimizer: Any, named: _Named, groups: Sequence[Sequence[Any]], partitions: Sequence[Tensor]
) -> Iterator[Holder]:
    for group, (parameters, partition) in enumerate(zip(groups, partitions, strict=True)):
        spans: list[Span] = []
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is None:
                continue
            ours, theirs = mapping.lp_fragment_address, mapping.hp_fragment_address
            spans.extend(named.spans(parameter, start=ours.start, numel=ours.numel, offset=theirs.start))
        yield Holder(partition, tuple(spans), optimizer.optimizer, group)


def _stage3(optimizer: Any, named: _Named) -> Iterator[Holder]:
    for number, parameters in enumerate(optimizer.fp16_groups):
        spans: list[Span] = []
        for parameter in parameters:
            _, offset, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = optimizer._get_param_partition_rank(parameter) * numel
            spans.extend(named.spans(parameter, start=start, numel=numel, offset=offset))
        on_device = optimizer.offload_optimizer and optimizer.subgroup_to_device[number] != "cpu"
        yield Holder(
            optimizer.fp32_partitioned_groups_flat[number],
            tuple(spans),
            optimizer.backup_optimizer if on_device else optimizer.optimizer,
            optimizer.sub_group_to_group_id[number],
            _stage3_presence(optimizer, number),
            is_on_nvme=optimizer._swappable_optimizer_subgroup(number),
        )


def _stage3_presence(optimizer: Any, number: int) -> Callable[[bool], AbstractContextManager[None]]:
    @contextmanager
    def present(changes: bool) -> Iterator[None]:
        swaps = optimizer._swappable_optimizer_subgroup(number)
        if swaps:
            optimizer._optimizer_states_and_gradient_swap_in(number)
        try:
            yield
        finally:
            if changes:
                # Makes the 16-bit partitions, in memory or on NVMe, those of the master weights.
                optimizer._reassign_or_swap_out_partitioned_parameters(number)
            if swaps and changes:
                optimizer._optimizer_states_and_gradient_swap_out(number)
            elif swaps:
                optimizer._release_swap_buffers(number)

    return present
