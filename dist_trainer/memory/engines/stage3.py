"""Stage 3: every parameter is partitioned over the ranks, gathered before a module needs it, and released afterwards.

Mirrors DeepSpeed 0.19.8's zero/stage3.py: buckets, gradients, the step. coordinator.py has what is gathered when.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from dist_trainer.memory.engines.coordinator import ParameterCoordinator
from dist_trainer.memory.engines.ledger import (
    BUCKETS,
    GATHERED,
    GRADIENTS,
    MASTER,
    PARAMETERS,
    TEMPORARIES,
    Block,
)
from dist_trainer.memory.engines.partitions import shard_numel
from dist_trainer.memory.engines.settings import BYTES_OF
from dist_trainer.memory.engines.stage0 import Bucket, Engine

# stage3.py takes the norm of an offloaded gradient in parts of at most so many elements.
OFFLOADED_NORM_ELEMENTS = 250_000_000


class Zero3Engine(Engine):
    """Every parameter in shards. The coordinator has those that are gathered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As `Engine`."""
        super().__init__(*args, **kwargs)
        settings = self.settings
        self.offloads = settings.offload_optimizer != "none"
        self.offloads_parameters = settings.offload_param != "none"
        # On a CPU host and device are one memory, and offload moves nothing.
        self.has_own_host = self.host is not self.ledger
        self.shards = [shard_numel(numel, self.world_size) for numel in self.numels]
        self.param_ledger = self.host if self.offloads_parameters else self.ledger
        self.secondary: dict[int, Block] = {}
        self.sub_groups = self._sub_groups()
        self.buckets = {dtype: Bucket() for dtype in self.lanes()}
        self.active_backward: dict[int, None] = {}
        self.coordinator = ParameterCoordinator(
            settings,
            self.ledger,
            modules=self.modules,
            numels=self.numels,
            shards=self.shards,
            world_size=self.world_size,
            is_whole=self.world_size == 1 and not (self.offloads_parameters and self.has_own_host),
            gather_dtype=self.gather_dtype,
            before_release=self._keep_secondary,
        )

    def init(self) -> None:
        super().init()
        settings, ledger, world = self.settings, self.ledger, self.world_size
        size, master = settings.weight_bytes, settings.master_bytes
        param_ledger = self.param_ledger
        pieces = []
        for p, shard in enumerate(self.shards):
            self._keep_secondary(p)
            pieces.append(self._parameter(size * shard))
            ledger.free(self.weights[p])
        total = sum(self.shards)
        ledger.empty_cache()
        if self.built_on_device:
            # Defragmenting goes through a flat buffer on the host, which on a CPU is the buffer itself.
            param_ledger.alloc(size * total, PARAMETERS)
            for block in pieces:
                param_ledger.free(block)
        else:
            # What was pinned stays with torch's allocator, for requests of the same size.
            for block in pieces if not settings.pins_param else ():
                param_ledger.free(block)
            self._parameter(size * total)
        state_ledger = self.host if self.offloads else ledger
        sizes = [sum(self.shards[p] for p in group) for group in self.sub_groups]
        for numel in sizes:
            # Cast, then cloned; weights that are fp32 already are cloned all the same.
            with state_ledger.temporary(master * numel if master != size else 0):
                state_ledger.alloc(master * numel, MASTER)
        if self.offloads:
            for numel in sizes:
                self.on_host(master * numel, GRADIENTS, is_pinned=settings.pins_optimizer)
        else:
            with ledger.temporary(master * max(sizes)):
                pass
        if settings.contiguous_gradients:
            for dtype in self.lanes():
                ledger.alloc(BYTES_OF[dtype] * settings.reduce_bucket_size, BUCKETS)
        if self.offloads:
            self.on_host(settings.accum_bytes * total, GRADIENTS, is_pinned=settings.pins_optimizer)
        else:
            ledger.alloc(settings.accum_bytes * total, GRADIENTS)
        # While the gradient hooks are set up, each parameter is gathered once, by itself.
        with ledger.temporary(size * world * max(self.shards), GATHERED):
            pass

    def _parameter(self, num_bytes: int) -> Block:
        if self.offloads_parameters:
            return self.on_host(num_bytes, PARAMETERS, is_pinned=self.settings.pins_param)
        return self.ledger.alloc(num_bytes, PARAMETERS)

    def _sub_groups(self) -> list[list[int]]:
        found = []
        for group in self.groups():
            if not group:
                continue
            if sum(self.shards[p] for p in group) <= self.settings.sub_group_size:
                found.append(group)
                continue
            current: list[int] = []
            for p in group:
                current.append(p)
                if sum(self.shards[q] for q in current) >= self.settings.sub_group_size or p == group[-1]:
                    found.append(current)
                    current = []
        return found

    def state_numel(self) -> int:
        return sum(self.shards)

    def begin_micro_batch(self, *, is_boundary: bool) -> None:
        super().begin_micro_batch(is_boundary=is_boundary)
        self.coordinator.begin_micro_batch()

    def forward_enter(self, module: int) -> None:
        self.coordinator.fetch(module)

    def forward_exit(self, module: int) -> None:
        self.coordinator.release_module(module)

    def saves_weight(self, module: int, weight: int) -> None:
        self.coordinator.save(module, weight)

    def backward_enter(self, module: int) -> None:
        for weight in [weight for weight, (owner, _) in self.coordinator.saved.items() if owner == 0 != module]:
            # The output embedding's product is the last of the forward pass.
            self.coordinator.forget(weight)
        self.active_backward[module] = None
        self.coordinator.fetch(module)

    def backward_exit(self, module: int) -> None:
        for weight in [weight for weight, (owner, _) in self.coordinator.saved.items() if owner == module]:
            self.coordinator.forget(weight)
        self.coordinator.release_module(module)
        self.active_backward.pop(module, None)

    def gather_dtype(self, parameter: int) -> str:
        """Under autocast a linear layer's parameters are gathered in 16-bit; otherwise all are as they are held."""
        return self.settings.dtype if self.settings.autocast is None else self.reduction_dtype(parameter)

    def _keep_secondary(self, parameter: int) -> None:
        """hpZ's secondary shard: of a parameter partitioned over `secondary_partition_size` ranks only. It is made when
        the parameter is released, and is void after each step.
        """
        over = self.settings.secondary_partition_size
        if over > 1 and self.world_size > 1 and parameter not in self.secondary:
            num_bytes = self.settings.weight_bytes * (self.world_size * self.shards[parameter] // over)
            self.secondary[parameter] = self._parameter(num_bytes)

    def gradient(self, parameter: int, block: Block) -> None:
        numel = self.numels[parameter]
        self.coordinator.forget(parameter)
        bucket = self.buckets[self.reduction_dtype(parameter)]
        if bucket.parameters and bucket.elements + numel > self.settings.reduce_bucket_size:
            self._reduce(self.reduction_dtype(parameter))
        self.gradients[parameter] = self.ledger.moved(block, GRADIENTS)
        if self.settings.contiguous_gradients and bucket.elements + numel <= self.settings.reduce_bucket_size:
            self.ledger.free(self.gradients.pop(parameter))
        bucket.parameters.append(parameter)
        bucket.elements += numel

    def _reduce(self, dtype: str) -> None:
        """Reduces a flat copy of the bucket, in which each gradient is padded to a multiple of the world size. A single
        gradient that needs no padding is not copied.
        """
        settings, bucket = self.settings, self.buckets[dtype]
        padded = self.world_size * sum(self.shards[p] for p in bucket.parameters)
        size, comm = settings.weight_bytes, BYTES_OF[dtype]
        kept = 0
        if bucket.parameters and settings.reduce_scatter:
            is_view = len(bucket.parameters) == 1 and self.numels[bucket.parameters[0]] % self.world_size == 0
            upcast = comm * bucket.elements if comm != size else 0
            flat = 0 if is_view else comm * padded
            owned = sum(self.shards[p] for p in bucket.parameters)
            widened = settings.accum_bytes * owned if settings.grad_accum_dtype != dtype else 0
            with ExitStack() as held:
                for num_bytes in (upcast, flat, widened):
                    held.enter_context(self.ledger.temporary(num_bytes, BUCKETS, self.reduction_stream))
            kept = (widened or flat or upcast) if self.offloads else 0
        with self.ledger.temporary(kept, BUCKETS, self.reduction_stream):
            for p in bucket.parameters:
                if self.offloads:
                    self._offload(self.shards[p])
                self.ledger.free(self.gradients.pop(p, None))
        bucket.clear()

    def _offload(self, shard: int) -> None:
        """A gradient's shard, of `shard` elements, is added to its sum on the device, and kept on the host. At the
        boundary its norm is taken, and it is cast to the masters' dtype.
        """
        accum, master = self.settings.accum_bytes, self.settings.master_bytes
        with self.ledger.temporary(accum * shard if self.has_own_host else 0):
            if self.is_boundary:
                self.copied_norm(min(shard, OFFLOADED_NORM_ELEMENTS), accum)
                with self.ledger.temporary(master * shard if master != accum else 0):
                    pass

    def end_backward(self) -> None:
        for dtype in self.buckets:
            self._reduce(dtype)
        for weight in list(self.coordinator.saved):
            self.coordinator.forget(weight)
        for module in self.active_backward:
            self.coordinator.leave(module)
        self.active_backward.clear()

    def step(self) -> None:
        settings, ledger = self.settings, self.ledger
        self.coordinator.release_all()
        size, master = settings.accum_bytes, settings.master_bytes
        state_ledger = self.host if self.offloads else ledger
        # The check for overflow makes a boolean for each element of the gradients.
        with ledger.temporary(0 if self.offloads else sum(self.shards)):
            pass
        for group in self.sub_groups:
            numel = sum(self.shards[p] for p in group)
            flat = upcast = None
            if not self.offloads:
                flat = ledger.alloc(size * numel if len(group) > 1 else 0, TEMPORARIES)
                if size != master:
                    upcast = ledger.alloc(master * numel, TEMPORARIES)
                    ledger.free(flat)
                    flat = None
            self.update([[numel]], master, ledger=state_ledger)
            ledger.free(upcast)
            ledger.free(flat)
        self.coordinator.gather_persisted()
        for block in self.secondary.values():
            self.param_ledger.free(block)
        self.secondary.clear()
