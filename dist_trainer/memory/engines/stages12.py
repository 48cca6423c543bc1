"""Stages 1 and 2: flat groups of parameters; each rank keeps one partition of their masters and optimizer states.

Mirrors DeepSpeed 0.19.8: zero/stage_1_and_2.py, and bf16_optimizer.py for stage 1 in bf16 with fp32 gradient sums.
"""

from __future__ import annotations

from dist_trainer.memory.engines.ledger import BUCKETS, GRADIENTS, MASTER, PARAMETERS, TEMPORARIES, Block
from dist_trainer.memory.engines.partitions import FlatGroup, flat_group
from dist_trainer.memory.engines.settings import BYTES_OF
from dist_trainer.memory.engines.stage0 import Bucket, Engine


class Zero12Engine(Engine):
    """Stages 1 and 2: flat groups, one partition of masters and states a rank (zero/stage_1_and_2.py)."""

    def init(self) -> None:
        super().init()
        settings, ledger = self.settings, self.ledger
        size, master = settings.weight_bytes, settings.master_bytes
        self.offloads = settings.offload_optimizer != "none"
        self.partitions: list[FlatGroup] = [
            flat_group(group, self.numels, self.world_size, round_robin=settings.round_robin) for group in self.groups()
        ]
        # 16-bit weights with fp32 gradient sums: each group has one fp32 buffer for the sums of this rank's partition.
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
                self._state(master * group.partition_numel, MASTER)
                ledger.free(clone)
            if self.offloads:
                self._state(size * group.partition_numel, BUCKETS)
        if self.offloads:
            largest = max(self.numels)
            self._state(size * largest, BUCKETS)
            ledger.alloc(size * largest, BUCKETS)
        zeros = [self._state(master * group.partition_numel, GRADIENTS) for group in self.partitions]
        if not self.offloads:
            for block in zeros:
                ledger.free(block)
        self.buckets = {dtype: Bucket() for dtype in self.lanes()}
        self.buffers: list[Block] = []
        self.copied: Block | None = None
        self.accumulated: Block | None = None
        self.compact: list[Block | None] = [None] * len(self.partitions)
        self.host_accumulated = False
        self.reduced_before: list[int] = []
        self.owned = {p for group in self.partitions for p in group.owned(self.rank)}
        self.fp32_gradients: dict[int, Block] = {}

    def _state(self, num_bytes: int, part: int) -> Block:
        if self.offloads:
            return self.on_host(num_bytes, part, is_pinned=self.settings.pins_optimizer)
        return self.ledger.alloc(num_bytes, part)

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
        for _ in range((2 if self.settings.overlap_comm else 1) * len(self.buckets)):
            self.buffers.append(self.ledger.alloc(size * self.settings.reduce_bucket_size, BUCKETS))

    def _into_bucket(self, parameter: int) -> None:
        numel = self.numels[parameter]
        bucket = self.buckets[self.reduction_dtype(parameter)]
        if bucket.parameters and bucket.elements + numel > self.settings.reduce_bucket_size:
            self._reduce(self.reduction_dtype(parameter))
        bucket.parameters.append(parameter)
        bucket.elements += numel
        if self.settings.contiguous_gradients and numel <= self.settings.reduce_bucket_size:
            # The gradient now lies in the bucket.
            self.ledger.free(self._pop_gradient(parameter))

    def _pop_gradient(self, parameter: int) -> Block | None:
        if self.settings.stage == 1 and self.is_compact:
            return self.fp32_gradients.pop(parameter, None)
        return self.gradients.pop(parameter, None)

    def _reduce(self, dtype: str) -> None:
        """Reduces the bucket to its owners, then lets go of what this rank does not own."""
        settings, bucket = self.settings, self.buckets[dtype]
        size, comm = settings.weight_bytes, BYTES_OF[dtype]
        for elements in self._flattened(bucket):
            upcast = comm * elements if comm != size else 0
            stream, temporary = self.reduction_stream, self.ledger.temporary
            with temporary(size * elements, BUCKETS, stream), temporary(upcast, BUCKETS, stream):
                pass
        for parameter in self.reduced_before:
            self.ledger.free(self._pop_gradient(parameter))
        self.reduced_before = []
        for parameter in bucket.parameters:
            if parameter in self.owned:
                self._keep(parameter)
            elif settings.stage == 2 or settings.contiguous_gradients:
                if settings.overlap_comm and not settings.contiguous_gradients:
                    self.reduced_before.append(parameter)
                else:
                    self.ledger.free(self._pop_gradient(parameter))
        bucket.clear()

    def _flattened(self, bucket: Bucket) -> list[int]:
        """Elements of each flat copy that the reduction makes; a run that is one slice of one rank is a view."""
        if not self.settings.contiguous_gradients:
            return [bucket.elements] if len(bucket.parameters) > 1 else []
        if not self.settings.reduce_scatter:
            return []
        # Slices that lie side by side and belong to one rank are one; fp32 sums keep each apart.
        runs: list[tuple[int, int]] = []
        for parameter in bucket.parameters:
            for part in self.partitions[self.group_of[parameter]].slices[parameter]:
                if runs and runs[-1][0] == part.rank and not self.is_compact:
                    runs[-1] = (part.rank, runs[-1][1] + part.numel)
                else:
                    runs.append((part.rank, part.numel))
        if self.settings.multi_rank_allreduce:
            return self._copied([numel for _, numel in runs])
        # One reduction for each rank that owns a part of it.
        owners = dict.fromkeys(rank for rank, _ in runs)
        return [copy for owner in owners for copy in self._copied([numel for rank, numel in runs if rank == owner])]

    def _copied(self, numels: list[int]) -> list[int]:
        """Elements of each flat copy: runs are copied together until they exceed a bucket; one alone is a view."""
        copies: list[int] = []
        together: list[int] = []
        for numel in numels:
            together.append(numel)
            if sum(together) > self.settings.reduce_bucket_size:
                copies += [sum(together)] if len(together) > 1 else []
                together = []
        return [*copies, sum(together)] if len(together) > 1 else copies

    def _keep(self, parameter: int) -> None:
        group = self.group_of[parameter]
        size = self.settings.weight_bytes
        if self.is_compact:
            if self.compact[group] is None:
                num_bytes = 4 * self.partitions[group].partition_numel
                self.compact[group] = self.ledger.alloc(num_bytes, GRADIENTS, self.reduction_stream)
            self.ledger.free(self._pop_gradient(parameter))
            return
        if self.offloads:
            self._offload(parameter, group)
            return
        if not self.settings.contiguous_gradients:
            return
        if self.copied is None:
            owned = sum(self.numels[p] for p in self.owned)
            self.copied = self.ledger.alloc(size * owned, GRADIENTS, self.reduction_stream)
        self.ledger.free(self._pop_gradient(parameter))

    def _offload(self, parameter: int, group: int) -> None:
        numel = self.partitions[group].numel_of(parameter, self.rank)
        # Stage 1 sums gradients on the device, and copies them to the host once a step.
        if self.settings.stage == 2 and self.settings.accumulation > 1 and not self.host_accumulated:
            # Gradients of earlier micro batches wait on the host, at the full size of each owned parameter.
            for p in self.owned:
                self._state(self.settings.weight_bytes * self.numels[p], GRADIENTS)
            self.host_accumulated = True
        if self.is_boundary:
            self.copied_norm(numel, self.settings.weight_bytes)
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
        for dtype in self.buckets:
            self._reduce(dtype)
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
    """Stage 1 in bf16 with fp32 gradient sums: each rank holds the fp32 sums of all parameters (bf16_optimizer.py)."""

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

    def gradient(self, parameter: int, block: Block) -> None:
        if not self.settings.immediate_grad_update:
            super().gradient(parameter, block)
            return
        with self.ledger.temporary(4 * self.numels[parameter]):
            pass
        self.ledger.free(block)

    def end_backward(self) -> None:
        if not self.settings.immediate_grad_update:
            with self.ledger.temporary(4 * max(self.numels)):
                pass
        if self.is_boundary:
            self.allreduce([group.flat_numel for group in self.partitions], 4)

    def step(self) -> None:
        self.update([[group.partition_numel] for group in self.partitions], 4)
        # After a micro batch the 16-bit gradients are only set to zero; they are freed here.
        self.free_gradients()
