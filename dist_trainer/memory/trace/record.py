"""What one micro batch allocates, in order: the model's real code, run once under fake tensors, as plain data.

A trace knows nothing of ZeRO, devices or launchers. `tracer.py` makes one (with torch), `kept.py` keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dist_trainer.config.run import Loss

# An event is (kind, first, second, third).
ALLOC = 0  # storage, bytes, part
FREE = 1  # storage
GRADIENT = 2  # parameter, storage: the parameter's gradient is complete and lies in this storage
FORWARD_ENTER = 3  # module
FORWARD_EXIT = 4  # module
BACKWARD_ENTER = 5  # module
BACKWARD_EXIT = 6  # module
BACKWARD = 7  # the backward pass begins

# The part of an ALLOC: the first two of `PARTS` in engines/ledger.py, with the same numbers.
ACTIVATIONS = 0
LOSS = 1

Event = tuple[int, int, int, int]


@dataclass(frozen=True)
class TraceSpec:
    """All that a trace depends on. `cuda`: trace what CUDA's kernels keep, where the CPU's keep something else
    (masks of dropout, rows of the fused loss). `efficient_linear`: DeepSpeed's linear layer for stage 3 instead of
    torch's.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    vocab_size: int
    context_length: int
    dropout: float
    loss: Loss
    micro_batch: int
    sequence_length: int
    dtype: Literal["fp32", "bf16", "fp16"]
    autocast: Literal["bf16", "fp16"] | None
    checkpointing: bool
    num_checkpoints: int | None
    cpu_checkpointing: bool
    cuda: bool
    efficient_linear: bool = False
    pad_vocab: bool = False


@dataclass(frozen=True)
class TracedParameter:
    """A parameter of `numel` elements. `group`: the number of its optimizer group (`GPT.parameter_groups`)."""

    name: str
    numel: int
    group: int


@dataclass(frozen=True)
class Trace:
    """Modules and parameters are numbered as the model lists them. `modules`: the parameters that each module owns.

    `saved_on_host_bytes`: what CPU checkpointing keeps in host memory, in `num_saved_on_host` tensors of one size.
    `linears`: (module, weight) for each matrix product that F.linear makes; the output embedding's is that of module 0,
    the whole model.
    """

    parameters: tuple[TracedParameter, ...]
    modules: tuple[tuple[int, ...], ...]
    events: tuple[Event, ...]
    saved_on_host_bytes: int = 0
    num_saved_on_host: int = 0
    linears: tuple[tuple[int, int], ...] = ()

    def linear_parameters(self) -> frozenset[int]:
        """The parameters of torch's nn.Linear modules."""
        return frozenset(p for module, _ in self.linears if module for p in self.modules[module])
