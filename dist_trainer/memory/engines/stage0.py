"""What DeepSpeed's engine holds beside the model's own pass, as allocations at the moments at which it makes them.

One class for each way DeepSpeed trains: those without ZeRO here, those of the ZeRO stages in stages12.py and stage3.py.
Each mirrors the order of DeepSpeed 0.19.8's own code, which its docstring names; sizes follow from that code. `host` is
the ledger of what offload keeps in host memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dist_trainer.memory.engines.ledger import (
    BUCKETS,
    COMPUTE,
    GRADIENTS,
    MASTER,
    PARAMETERS,
    REDUCTION,
    STATES,
    TEMPORARIES,
    Block,
    Ledger,
    pinned,
)
from dist_trainer.memory.engines.partitions import parts_of
from dist_trainer.memory.engines.settings import BYTES_OF, Settings
from dist_trainer.memory.trace.record import Trace

# Stage 0 reduces a flat copy of gradients as soon as it has more elements than this (MEMORY_OPT_ALLREDUCE_SIZE).
ALLREDUCE_ELEMENTS = 500_000_000
# DeepSpeed's own optimizers, which take no parts of the parameters; the others are torch's.
NOT_IN_PARTS = ("lamb", "lion", "muon")


@dataclass
class Bucket:
    """Gradients that are reduced together, by parameter."""

    parameters: list[int] = field(default_factory=list)
    elements: int = 0

    def clear(self) -> None:
        self.parameters, self.elements = [], 0


class Engine:
    """Stage 0 in fp32: torch's optimizer on the model's own parameters (engine.py, buffered_allreduce_fallback)."""

    def __init__(
        self,
        trace: Trace,
        settings: Settings,
        ledger: Ledger,
        host: Ledger,
        *,
        rank: int,
        world_size: int,
        built_on_device: bool,
    ) -> None:
        self.parameters = trace.parameters
        self.linear_parameters = trace.linear_parameters()
        self.modules = trace.modules
        self.numels = [parameter.numel for parameter in trace.parameters]
        self.settings = settings
        self.ledger = ledger
        self.host = host
        self.rank = rank
        self.world_size = world_size
        self.built_on_device = built_on_device
        self.is_boundary = True
        self.gradients: dict[int, Block] = {}
        self.weights: list[Block] = []
        self.has_states = False

    @property
    def total_numel(self) -> int:
        return sum(self.numels)

    def groups(self) -> list[list[int]]:
        """The optimizer's groups, each in the model's order."""
        found: dict[int, list[int]] = {}
        for number, parameter in enumerate(self.parameters):
            found.setdefault(parameter.group, []).append(number)
        return [found[group] for group in sorted(found)]

    def numels_by_group(self) -> list[list[int]]:
        return [[self.numels[p] for p in group] for group in self.groups()]

    def init(self) -> None:
        """Builds the model in fp32, on the host unless `built_on_device` (a CPU is both), and casts it."""
        size = self.settings.weight_bytes
        if not self.built_on_device or size == 4:
            self.weights = [self.ledger.alloc(size * numel, PARAMETERS) for numel in self.numels]
            return
        built = [self.ledger.alloc(4 * numel, PARAMETERS) for numel in self.numels]
        for numel, block in zip(self.numels, built, strict=True):
            self.weights.append(self.ledger.alloc(size * numel, PARAMETERS))
            self.ledger.free(block)

    def begin_micro_batch(self, *, is_boundary: bool) -> None:
        self.is_boundary = is_boundary

    def forward_enter(self, module: int) -> None:
        pass

    def forward_exit(self, module: int) -> None:
        pass

    def backward_enter(self, module: int) -> None:
        pass

    def backward_exit(self, module: int) -> None:
        pass

    @property
    def reduction_stream(self) -> int:
        """The stream on which a reduction allocates: one of its own with `overlap_comm`."""
        return REDUCTION if self.settings.overlap_comm else COMPUTE

    def on_host(self, num_bytes: int, part: int, *, is_pinned: bool) -> Block:
        """A block in host memory. On a CPU that is the device's memory, and nothing is pinned."""
        is_pinned = is_pinned and self.host is not self.ledger
        return self.host.alloc(pinned(num_bytes) if is_pinned else num_bytes, part)

    def saves_weight(self, module: int, weight: int) -> None:
        """Autograd keeps the module's weight, from the forward pass that has just begun, for the backward pass."""

    def reduction_dtype(self, parameter: int) -> str:
        """The type in which ZeRO reduces a gradient: under autocast a linear layer's in 16-bit, others as they are."""
        settings = self.settings
        if settings.autocast is None:
            return settings.comm_dtype
        return settings.autocast if parameter in self.linear_parameters else settings.dtype

    def lanes(self) -> list[str]:
        """The types in which gradients are reduced, in DeepSpeed's order: each has a bucket of its own."""
        return sorted({self.reduction_dtype(p) for p in range(len(self.numels))})

    def gradient(self, parameter: int, block: Block) -> None:
        """A gradient is complete in `block`, which the engine owns from here on."""
        if parameter in self.gradients:
            self.ledger.free(block)
        else:
            self.gradients[parameter] = self.ledger.moved(block, GRADIENTS)

    def end_backward(self) -> None:
        if self.is_boundary:
            self.allreduce(self.numels, self.settings.weight_bytes)

    def allreduce(self, numels: Iterable[int], size: int) -> None:
        """Reduces gradients of `size` bytes an element in flat copies, each closed when it has more than
        ALLREDUCE_ELEMENTS elements. A single tensor needs no copy. One rank reduces nothing (train/engine.py).
        """
        if self.world_size == 1:
            return
        chunk: list[int] = []
        comm = BYTES_OF[self.settings.comm_dtype]

        def flush() -> None:
            if not chunk:
                return
            copied = size * sum(chunk) if len(chunk) > 1 else 0
            upcast = comm * sum(chunk) if comm != size else 0
            with self.ledger.temporary(copied, BUCKETS), self.ledger.temporary(upcast, BUCKETS):
                pass
            chunk.clear()

        for numel in numels:
            chunk.append(numel)
            if sum(chunk) > ALLREDUCE_ELEMENTS:
                flush()
        flush()

    def step(self) -> None:
        self.update(self.numels_by_group(), 4)
        self.free_gradients()

    def update(self, groups: Sequence[Sequence[int]], size: int, *, ledger: Ledger | None = None) -> None:
        """The optimizer's update: states at the first one, then the temporaries. `groups`: the elements of each tensor,
        by parameter group; `size`: bytes of an element.

        It works on one group at a time: torch's foreach form on all tensors of a group together, the loop on one tensor
        after the other, the fused form without temporaries.
        """
        ledger = ledger or self.ledger
        per_state = BYTES_OF[self.settings.states_dtype]
        if not self.has_states:
            for numel in itertools.chain.from_iterable(groups):
                for _ in range(self.settings.states_per_parameter):
                    ledger.alloc(per_state * numel, STATES)
        if self.settings.optimizer == "foreach":
            with ledger.temporary(size * max(map(sum, groups), default=0)):
                pass
        elif self.settings.optimizer == "loop":
            largest = size * max(itertools.chain.from_iterable(groups), default=0)
            with ledger.temporary(largest), ledger.temporary(largest):
                pass

    def end_step(self) -> None:
        self.has_states = True

    def add_states(self) -> None:
        """Allocates the optimizer's states without a first step, where only a later step is of interest."""
        if not self.has_states:
            states_ledger = self.host if self.settings.offload_optimizer != "none" else self.ledger
            states_ledger.alloc(self.settings.state_bytes * self.state_numel(), STATES)
            self.has_states = True

    def state_numel(self) -> int:
        """Elements that this rank's optimizer updates."""
        return self.total_numel

    def free_gradients(self) -> None:
        for block in self.gradients.values():
            self.ledger.free(block)
        self.gradients.clear()

    def copied_norm(self, numel: int, size: int) -> None:
        """The norm of an offloaded gradient, which DeepSpeed takes itself: of an fp32 copy where the gradient is in
        16-bit (`size` 2). Other gradients' norms need no copy (train/grad_norm.py).
        """
        with self.ledger.temporary(4 * numel if size < 4 else 0):
            pass


class Fp16Engine(Engine):
    """Stage 0 in 16-bit with DeepSpeed's FusedAdam: flat groups with fp32 masters (fp16/fused_optimizer.py)."""

    def init(self) -> None:
        super().init()
        size, ledger = self.settings.weight_bytes, self.ledger
        for group in self.groups():
            numels = [self.numels[p] for p in group]
            clones = [ledger.alloc(size * numel, TEMPORARIES) for numel in numels]
            flat = ledger.alloc(size * sum(numels), PARAMETERS)
            for block in clones:
                ledger.free(block)
            for p in group:
                ledger.free(self.weights[p])
                self.weights[p] = flat
            with ledger.temporary(size * sum(numels)):
                ledger.alloc(4 * sum(numels), MASTER)

    def step(self) -> None:
        ledger, flats = self.ledger, []
        for group in self.groups():
            upcast = [ledger.alloc(4 * self.numels[p], TEMPORARIES) for p in group]
            flats.append(ledger.alloc(4 * sum(self.numels[p] for p in group), TEMPORARIES))
            for block in upcast:
                ledger.free(block)
            for p in group:
                ledger.free(self.gradients.pop(p, None))
        self.update([[sum(numels)] for numels in self.numels_by_group()], 4)
        for block in flats:
            ledger.free(block)


class UnfusedFp16Engine(Engine):
    """Stage 0 in 16-bit with any other optimizer: an fp32 master a parameter (fp16/unfused_optimizer.py)."""

    def init(self) -> None:
        super().init()
        size, ledger = self.settings.weight_bytes, self.ledger
        for group in self.groups():
            for p in group:
                with ledger.temporary(size * self.numels[p]):
                    ledger.alloc(4 * self.numels[p], MASTER)

    def step(self) -> None:
        if self.settings.optimizer_name in NOT_IN_PARTS:
            upcast = [self.upcast(p) for group in self.groups() for p in group]
            self.update(self.numels_by_group(), 4)
            for block in upcast:
                self.ledger.free(block)
            self.free_gradients()
            return
        for group in self.groups():
            for part in parts_of([self.numels[p] for p in group]):
                self.update_part(group[part])

    def upcast(self, parameter: int) -> Block:
        return self.ledger.alloc(4 * self.numels[parameter], TEMPORARIES)

    def update_part(self, parameters: Sequence[int]) -> None:
        """As train/update_in_parts.py does it."""
        upcast = []
        for p in parameters:
            upcast.append(self.upcast(p))
            self.ledger.free(self.gradients.pop(p, None))
        self.update([[self.numels[p] for p in parameters]], 4)
        for block in upcast:
            self.ledger.free(block)
