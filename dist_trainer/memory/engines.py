"""What DeepSpeed's engine holds beside the model's own pass, told as allocations at the moments at which it makes them.

One class for each way DeepSpeed trains. Each mirrors the order of DeepSpeed 0.19.8's own code, which its docstring
names; sizes follow from that code. `host` is the ledger of what offload keeps in host memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from dist_trainer.memory.ledger import (
    BUCKETS,
    GRADIENTS,
    MASTER,
    PARAMETERS,
    STATES,
    TEMPORARIES,
    Block,
    Ledger,
)
from dist_trainer.memory.partitions import FlatGroup, flat_group
from dist_trainer.memory.settings import BYTES_OF, Settings
from dist_trainer.memory.trace import TracedParameter

# DeepSpeed takes gradient norms in fp64 where the device has it: a copy of one gradient at a time.
NORM_BYTES = 8
# Stage 0 reduces gradients in flat copies of at most so many elements (MEMORY_OPT_ALLREDUCE_SIZE).
ALLREDUCE_ELEMENTS = 500_000_000


class Engine:
    """Stage 0 in fp32: torch's optimizer on the model's own parameters (engine.py, buffered_allreduce_fallback)."""

    def __init__(
        self,
        parameters: Sequence[TracedParameter],
        settings: Settings,
        ledger: Ledger,
        host: Ledger,
        *,
        rank: int,
        world_size: int,
        built_on_device: bool,
    ) -> None:
        self.parameters = parameters
        self.numels = [parameter.numel for parameter in parameters]
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
        """Flat copies of the gradients, one for each run of more than ALLREDUCE_ELEMENTS; one tensor is a view."""
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
        """The optimizer on groups of tensors of these elements: states at the first update, then the temporaries.

        It works on one group at a time: torch's foreach form on all its tensors together, the loop on one tensor.
        """
        ledger = ledger or self.ledger
        per_state = BYTES_OF[self.settings.offload_states_dtype]
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
        """The optimizer's states as the first step leaves them, where only a later step is of interest."""
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

    def norms(self, numels: Iterable[int]) -> None:
        """A copy in fp64 of one gradient at a time."""
        with self.ledger.temporary(NORM_BYTES * max(numels, default=0)):
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
        zeros = [ledger.alloc(4 * sum(numels), TEMPORARIES) for numels in self.numels_by_group()]
        self._update_flats()
        self.has_states = True
        for block in zeros:
            ledger.free(block)

    def _update_flats(self) -> None:
        self.update([[sum(numels)] for numels in self.numels_by_group()], 4)

    def step(self) -> None:
        ledger, flats = self.ledger, []
        for group in self.groups():
            upcast = [ledger.alloc(4 * self.numels[p], TEMPORARIES) for p in group]
            flats.append(ledger.alloc(4 * sum(self.numels[p] for p in group), TEMPORARIES))
            for block in upcast:
                ledger.free(block)
            for p in group:
                ledger.free(self.gradients.pop(p, None))
        self._update_flats()
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
        zeros = [ledger.alloc(size * numel, TEMPORARIES) for numel in self.numels]
        zeros += [ledger.alloc(4 * numel, TEMPORARIES) for numel in self.numels]
        self.update(self.numels_by_group(), 4)
        self.has_states = True
        for block in zeros:
            ledger.free(block)

    def step(self) -> None:
        ledger, upcast = self.ledger, []
        for group in self.groups():
            with ledger.temporary(4 * max((self.numels[p] for p in group), default=0)):
                pass
            upcast += [ledger.alloc(4 * self.numels[p], TEMPORARIES) for p in group]
        self.update(self.numels_by_group(), 4)
        for block in upcast:
            ledger.free(block)
        self.free_gradients()


class Zero12Engine(Engine):
    """Stages 1 and 2: flat groups, one partition of masters and states a rank (zero/stage_1_and_2.py)."""

    def init(self) -> None:
        super().init()
        settings, ledger = self.settings, self.ledger
        size, master = settings.weight_bytes, settings.master_bytes
        self.offloads = settings.offload_optimizer != "none"
        self.state_ledger = self.host if self.offloads else ledger
        self.partitions: list[FlatGroup] = [
            flat_group(group, self.numels, self.world_size, round_robin=settings.round_robin) for group in self.groups()
        ]
        # fp32 gradients at stage 2 are gathered in one buffer of the partition.
        self.is_compact = settings.grad_accum_dtype == "fp32" and settings.dtype != "fp32"
        self.group_of = {p: number for number, group in enumerate(self.partitions) for p in group.order}
        for group in self.partitions:
            ledger.empty_cache()
            flat = ledger.alloc(size * group.flat_numel, PARAMETERS)
            for p in group.order:
                ledger.free(self.weights[p])
                self.weights[p] = flat
            clone = ledger.alloc(size * group.partition_numel, TEMPORARIES if size != master else MASTER)
            if size != master or self.offloads:
                self.state_ledger.alloc(master * group.partition_numel, MASTER)
                ledger.free(clone)
            if self.offloads:
                self.host.alloc(size * group.partition_numel, BUCKETS)
        if self.offloads:
            largest = max(self.numels)
            self.host.alloc(size * largest, BUCKETS)
            ledger.alloc(size * largest, BUCKETS)
        zeros = [self.state_ledger.alloc(master * group.partition_numel, GRADIENTS) for group in self.partitions]
        if not self.offloads:
            for block in zeros:
                ledger.free(block)
        self.bucket: list[int] = []
        self.bucket_elements = 0
        self.buffers: list[Block] = []
        self.copied: Block | None = None
        self.accumulated: Block | None = None
        self.compact: list[Block | None] = [None] * len(self.partitions)
        self.host_accumulated = False
        self.reduced_before: list[int] = []
        self.owned = {p for group in self.partitions for p in group.owned(self.rank)}
        self.fp32_gradients: dict[int, Block] = {}

    def state_numel(self) -> int:
        return sum(group.partition_numel for group in self.partitions)

    def gradient(self, parameter: int, block: Block) -> None:
        settings = self.settings
        self._set_up_buckets()
        super().gradient(parameter, block)
        if settings.stage == 1 and self.is_compact:
            self._fill_accumulator(parameter)
        if settings.stage == 2 or (settings.overlap_comm and self.is_boundary):
            self._into_bucket(parameter)

    def _fill_accumulator(self, parameter: int) -> None:
        block = self.gradients.pop(parameter)
        if parameter not in self.fp32_gradients:
            self.fp32_gradients[parameter] = self.ledger.alloc(4 * self.numels[parameter], GRADIENTS)
        else:
            with self.ledger.temporary(4 * self.numels[parameter]):
                pass
        self.ledger.free(block)

    def _set_up_buckets(self) -> None:
        if self.buffers or not self.settings.contiguous_gradients:
            return
        size = 4 if self.settings.stage == 1 and self.is_compact else self.settings.weight_bytes
        kinds = 2 if self.settings.autocast else 1
        for _ in range((2 if self.settings.overlap_comm else 1) * kinds):
            self.buffers.append(self.ledger.alloc(size * self.settings.reduce_bucket_size, BUCKETS))

    def _into_bucket(self, parameter: int) -> None:
        numel = self.numels[parameter]
        if self.bucket and self.bucket_elements + numel > self.settings.reduce_bucket_size:
            self._reduce()
        self.bucket.append(parameter)
        self.bucket_elements += numel
        if self.settings.contiguous_gradients and numel <= self.settings.reduce_bucket_size:
            # The gradient now lies in the bucket.
            self.ledger.free(self._pop_gradient(parameter))

    def _pop_gradient(self, parameter: int) -> Block | None:
        if self.settings.stage == 1 and self.is_compact:
            return self.fp32_gradients.pop(parameter, None)
        return self.gradients.pop(parameter, None)

    def _reduce(self) -> None:
        """Reduces the bucket to its owners, then lets go of what this rank does not own."""
        settings = self.settings
        size = settings.weight_bytes
        for elements in self._flattened():
            comm = settings.reduction_bytes
            upcast = comm * elements if comm != size else 0
            with self.ledger.temporary(size * elements, BUCKETS), self.ledger.temporary(upcast, BUCKETS):
                pass
        for parameter in self.reduced_before:
            self.ledger.free(self._pop_gradient(parameter))
        self.reduced_before = []
        for parameter in self.bucket:
            if parameter in self.owned:
                self._keep(parameter)
            elif settings.stage == 2 or settings.contiguous_gradients:
                if settings.overlap_comm and not settings.contiguous_gradients:
                    self.reduced_before.append(parameter)
                else:
                    self.ledger.free(self._pop_gradient(parameter))
        self.bucket, self.bucket_elements = [], 0

    def _flattened(self) -> list[int]:
        """Elements of each flat copy that the reduction makes; a run that is one slice of one rank is a view."""
        if not self.settings.contiguous_gradients:
            return [self.bucket_elements] if len(self.bucket) > 1 else []
        if not self.settings.reduce_scatter:
            return []
        chunks: list[int] = []
        numel, count, previous = 0, 0, -1
        for parameter in self.bucket:
            for part in self.partitions[self.group_of[parameter]].slices[parameter]:
                if part.rank != previous or self.is_compact:
                    if numel > self.settings.reduce_bucket_size:
                        chunks += [numel] if count > 1 else []
                        numel, count = 0, 0
                    count += 1
                numel += part.numel
                previous = part.rank
        return [*chunks, numel] if count > 1 else chunks

    def _keep(self, parameter: int) -> None:
        group = self.group_of[parameter]
        size = self.settings.weight_bytes
        if self.is_compact:
            if self.compact[group] is None:
                self.compact[group] = self.ledger.alloc(4 * self.partitions[group].partition_numel, GRADIENTS)
            self.ledger.free(self._pop_gradient(parameter))
            return
        if self.offloads:
            self._offload(parameter, group)
            return
        if not self.settings.contiguous_gradients:
            return
        if self.copied is None:
            self.copied = self.ledger.alloc(size * sum(self.numels[p] for p in self.owned), GRADIENTS)
        self.ledger.free(self._pop_gradient(parameter))

    def _offload(self, parameter: int, group: int) -> None:
        numel = self.partitions[group].numel_of(parameter, self.rank)
        # Stage 1 adds up on the device, and copies once a step.
        if self.settings.stage == 2 and self.settings.accumulation > 1 and not self.host_accumulated:
            # Gradients of earlier micro batches wait on the host, at the full size of each owned parameter.
            self.host.alloc(self.settings.weight_bytes * sum(self.numels[p] for p in self.owned), GRADIENTS)
            self.host_accumulated = True
        if self.is_boundary:
            self.norms([numel])
            if self.settings.weight_bytes != self.settings.master_bytes:
                with self.ledger.temporary(self.settings.master_bytes * numel):
                    pass
        self.ledger.free(self._pop_gradient(parameter))

    def end_backward(self) -> None:
        if self.settings.stage == 1 and not self.is_boundary:
            return
        if self.settings.stage == 1 and not self.settings.overlap_comm:
            for group in self.partitions:
                for parameter in self._group_in_model_order(group):
                    self._into_bucket(parameter)
        self._reduce()
        if self.settings.overlap_comm:
            for parameter in self.reduced_before:
                self.ledger.free(self._pop_gradient(parameter))
            self.reduced_before = []
        if self.copied is not None:
            if self.accumulated is None:
                self.accumulated = self.copied
            else:
                self.ledger.free(self.copied)
            self.copied = None
        for buffer in self.buffers:
            self.ledger.free(buffer)
        self.buffers = []
        if self.settings.contiguous_gradients:
            self.free_gradients()

    def _group_in_model_order(self, group: FlatGroup) -> list[int]:
        return sorted(group.order)

    def step(self) -> None:
        settings, ledger = self.settings, self.ledger
        size, master = settings.weight_bytes, settings.master_bytes
        if self.offloads:
            self.update([[group.partition_numel] for group in self.partitions], master, ledger=self.host)
            self._free_compact()
            return
        for group in self.partitions:
            self.norms(group.numel_of(p, self.rank) for p in group.owned(self.rank))
        source = settings.accum_bytes if self.is_compact else size
        for number, group in enumerate(self.partitions):
            partition = group.partition_numel
            compact = self.compact[number]
            flat = None
            if compact is None:
                is_copy = len(group.owned(self.rank)) > 1 or self.rank == self.world_size - 1
                flat = ledger.alloc(source * partition if is_copy else 0, TEMPORARIES)
            upcast = ledger.alloc(master * partition if source != master else 0, TEMPORARIES)
            if source != master:
                ledger.free(flat)
                flat = None
            if not settings.contiguous_gradients:
                for p in group.order:
                    ledger.free(self.gradients.pop(p, None))
            if number == len(self.partitions) - 1:
                ledger.free(self.accumulated)
                self.accumulated = None
            self.update([[partition]], master)
            ledger.free(upcast)
            ledger.free(flat)
            ledger.free(compact)
            self.compact[number] = None
        self.free_gradients()

    def _free_compact(self) -> None:
        for block in self.compact:
            self.ledger.free(block)
        self.compact = [None] * len(self.partitions)


class Bf16Engine(Engine):
    """Stage 1 in bf16 with fp32 gradient accumulation: whole fp32 gradients a rank (bf16_optimizer.py)."""

    def init(self) -> None:
        super().init()
        ledger, size = self.ledger, self.settings.weight_bytes
        self.partitions = [
            flat_group(group, self.numels, self.world_size, round_robin=False) for group in self.groups()
        ]
        for group in self.partitions:
            flat = ledger.alloc(size * group.flat_numel, PARAMETERS)
            for p in group.order:
                ledger.free(self.weights[p])
                self.weights[p] = flat
            with ledger.temporary(size * group.partition_numel):
                ledger.alloc(4 * group.partition_numel, MASTER)
            ledger.alloc(4 * group.flat_numel, GRADIENTS)

    def state_numel(self) -> int:
        return sum(group.partition_numel for group in self.partitions)

    def end_backward(self) -> None:
        with self.ledger.temporary(4 * max(self.numels)):
            pass
        if self.is_boundary:
            self.allreduce([group.flat_numel for group in self.partitions], 4)

    def step(self) -> None:
        self.update([[group.partition_numel] for group in self.partitions], 4)
        # Between micro batches the 16-bit gradients are set to zero, and freed only here.
        self.free_gradients()
