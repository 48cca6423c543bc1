"""Stage 3: every parameter is partitioned over the ranks, gathered before a module needs it, and released afterwards.

Mirrors DeepSpeed 0.19.8: zero/stage3.py (buckets, gradients, the step) and zero/partitioned_param_coordinator.py (what
is fetched, prefetched and released when). The first forward and backward only record the order; from the second on it
is known, and prefetching and reuse apply.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from dist_trainer.memory.engines.ledger import (
    BUCKETS,
    COMPUTE,
    GATHERED,
    GATHERING,
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
NORM_ELEMENTS = 250_000_000


@dataclass
class _Gather:
    """One all-gather in flight. Its flat buffers, one for each dtype that is gathered, live until the last of its
    parameters has been waited for.
    """

    parameters: list[int]
    flats: list[Block]
    is_copied: bool = False
    waiting: set[int] = field(default_factory=set)


class Zero3Engine(Engine):
    """Every parameter in shards; see the module. `available`: the gathered parameters and their blocks, of which
    `holders` counts the users. `active`: the modules that are using a parameter.
    """

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
        self._persisted = self._persistent()
        self.available: dict[int, Block | None] = {}
        self.holders: Counter[int] = Counter()
        self.saved: dict[int, tuple[int, Block]] = {}
        self.active: dict[int, set[int]] = {p: set() for p in range(len(self.numels))}
        self.in_flight: dict[int, _Gather] = {}
        self.num_available = 0
        self.recorded: list[int] = []
        self.is_complete = False
        self.step_id = 0
        self.queue: deque[tuple[int, int]] = deque()
        self.last_fetched: dict[int, int] = {}
        self.buckets = {dtype: Bucket() for dtype in self.lanes()}
        self.active_backward: dict[int, None] = {}
        # The order of modules, and of their parameters with the step of each, once a whole micro batch was recorded.
        self.order: tuple[int, ...] = ()
        self.parameter_order: list[tuple[int, int]] = []

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

    def _persistent(self) -> set[int]:
        """Parameters too small to be worth releasing: up to persistence_threshold elements each, and together up to
        model_persistence_threshold.
        """
        kept, total = set(), 0
        for p, numel in enumerate(self.numels):
            if (
                numel <= self.settings.persistence_threshold
                and total + numel <= self.settings.model_persistence_threshold
            ):
                kept.add(p)
                total += numel
        return kept

    def state_numel(self) -> int:
        return sum(self.shards)

    def begin_micro_batch(self, *, is_boundary: bool) -> None:
        super().begin_micro_batch(is_boundary=is_boundary)
        for p in list(self.in_flight):
            self._wait(p)
            self._release(p)
        if self.recorded and not self.is_complete:
            self.is_complete = True
            self.order = tuple(self.recorded)
            self.parameter_order = [(p, step) for step, module in enumerate(self.order) for p in self.modules[module]]
        if self.is_complete:
            self.queue = deque(self.parameter_order)
        self.last_fetched = {}
        self.step_id = 0
        self.num_available = 0

    def forward_enter(self, module: int) -> None:
        self._fetch(module)

    def forward_exit(self, module: int) -> None:
        self._release_module(module)

    def saves_weight(self, module: int, weight: int) -> None:
        block = self.available.get(weight)
        if block is not None:
            self.saved[weight] = (module, self._hold(block))

    def _forget(self, weight: int) -> None:
        """Drops the autograd graph's reference to a weight: the backward pass of its product is done."""
        if weight in self.saved:
            self._drop(self.saved.pop(weight)[1])

    def _hold(self, block: Block) -> Block:
        self.holders[block.number] += 1
        return block

    def _drop(self, block: Block | None) -> None:
        if block is None:
            return
        self.holders[block.number] -= 1
        if not self.holders[block.number]:
            del self.holders[block.number]
            self.ledger.free(block)

    def backward_enter(self, module: int) -> None:
        for weight in [weight for weight, (owner, _) in self.saved.items() if owner == 0 != module]:
            # The output embedding's product is the last of the forward pass.
            self._forget(weight)
        self.active_backward[module] = None
        self._fetch(module)

    def backward_exit(self, module: int) -> None:
        for weight in [weight for weight, (owner, _) in self.saved.items() if owner == module]:
            self._forget(weight)
        self._release_module(module)
        self.active_backward.pop(module, None)

    def _fetch(self, module: int) -> None:
        if not self.is_complete:
            self.recorded.append(module)
        wanted = self.modules[module]
        self._gather([p for p in wanted if p not in self.available and p not in self.in_flight])
        for p in wanted:
            self.active[p].add(module)
            if p in self.in_flight:
                self._wait(p)
        if self.is_complete:
            self._prefetch(wanted)
        self.step_id += 1

    def _prefetch(self, wanted: Sequence[int]) -> None:
        fresh = [p for p in wanted if self.last_fetched.get(p, -1) < self.step_id]
        discarded: set[int] = set()
        while self.queue and len(discarded) < len(fresh):
            p, step = self.queue.popleft()
            self.last_fetched[p] = step
            discarded.add(p)
        room = min(self.settings.max_live - self.num_available, self.settings.prefetch_bucket_size)
        chosen: list[int] = []
        numel = 0
        while self.queue and numel < room:
            p, step = self.queue.popleft()
            is_new = p not in self.available and p not in self.in_flight and p not in chosen
            self.last_fetched[p] = max(self.last_fetched.get(p, -1), step)
            if is_new:
                chosen.append(p)
                numel += self.numels[p]
        self._gather(chosen)

    def _gather(self, wanted: Sequence[int]) -> None:
        if not wanted:
            return
        self.num_available += sum(self.numels[p] for p in wanted)
        if self.world_size == 1 and not (self.offloads_parameters and self.has_own_host):
            for p in wanted:
                self.in_flight[p] = _Gather([p], [], is_copied=True, waiting={p})
            return
        if self.settings.allgather_sequential:
            for p in wanted:
                self.in_flight[p] = _Gather([p], [self._flat([p])], waiting={p})
            return
        sent = {dtype: [p for p in wanted if self.gather_dtype(p) == dtype] for dtype in sorted(self.buckets)}
        flats = [self._flat(members) for members in sent.values() if members]
        gather = _Gather(sorted(wanted), flats, waiting=set(wanted))
        for p in wanted:
            self.in_flight[p] = gather

    def gather_dtype(self, parameter: int) -> str:
        """Under autocast a linear layer's parameters are gathered in 16-bit; otherwise all are as they are held."""
        return self.settings.dtype if self.settings.autocast is None else self.reduction_dtype(parameter)

    def _flat(self, members: Sequence[int]) -> Block:
        size = BYTES_OF[self.gather_dtype(members[0])]
        num_bytes = size * self.world_size * sum(self.shards[p] for p in members)
        return self.ledger.alloc(num_bytes, GATHERED, self.gathering_stream)

    @property
    def gathering_stream(self) -> int:
        return GATHERING if self.settings.overlap_comm else COMPUTE

    def _wait(self, parameter: int) -> None:
        gather = self.in_flight.pop(parameter)
        size = self.settings.weight_bytes
        if not gather.flats:
            self.available[parameter] = None
            return
        is_sent_as_it_is = self.gather_dtype(parameter) == self.settings.dtype
        if len(gather.parameters) == 1 and is_sent_as_it_is:
            self.available[parameter] = self._hold(gather.flats[0])
            return
        if self.settings.fetches_by_allreduce:
            # Each parameter is a view of the flat buffer.
            for p in gather.parameters if not gather.is_copied else []:
                self.available[p] = self._hold(gather.flats[0])
            gather.is_copied = True
            return
        if not gather.is_copied:
            gather.is_copied = True
            for p in gather.parameters:
                sent = self.gather_dtype(p)
                cast = 0 if sent == self.settings.dtype else BYTES_OF[sent] * self.numels[p]
                with self.ledger.temporary(cast, GATHERED, self.gathering_stream):
                    whole = self.ledger.alloc(size * self.numels[p], GATHERED, self.gathering_stream)
                    self.available[p] = self._hold(whole)
        gather.waiting.discard(parameter)
        if not gather.waiting:
            for flat in gather.flats:
                self.ledger.free(flat)

    def _release_module(self, module: int) -> None:
        releasable = self._releasable(module) if self.is_complete else set(self.modules[module])
        for p in self.modules[module]:
            self.active[p].discard(module)
            if p in releasable:
                self._release(p)

    def _releasable(self, module: int) -> set[int]:
        releasable = {p for p in self.modules[module] if p not in self._persisted}
        releasable = {p for p in releasable if self.last_fetched.get(p, -1) <= self.step_id}
        traversed = 0
        for later in self.order[self.step_id :]:
            if traversed >= self.settings.max_reuse or not releasable:
                break
            for p in self.modules[later]:
                releasable.discard(p)
                traversed += self.numels[p]
        return releasable

    def _release(self, parameter: int) -> None:
        if parameter in self.available and parameter not in self.in_flight and not self.active[parameter]:
            self._keep_secondary(parameter)
            self._drop(self.available.pop(parameter))
            self.num_available -= self.numels[parameter]

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
        self._forget(parameter)
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
                self.norms([min(shard, NORM_ELEMENTS)])
                with self.ledger.temporary(master * shard if master != accum else 0):
                    pass

    def end_backward(self) -> None:
        for dtype in self.buckets:
            self._reduce(dtype)
        for weight in list(self.saved):
            self._forget(weight)
        for module in list(self.active_backward):
            for p in self.modules[module]:
                self.active[p].discard(module)
                if p not in self._persisted:
                    self._release(p)
        self.active_backward.clear()

    def step(self) -> None:
        settings, ledger = self.settings, self.ledger
        for p in list(self.in_flight):
            self._wait(p)
        for p in list(self.available):
            self.active[p].clear()
            self._release(p)
        size, master = settings.accum_bytes, settings.master_bytes
        state_ledger = self.host if self.offloads else ledger
        # The check for overflow makes a boolean for each element of the gradients.
        with ledger.temporary(0 if self.offloads else sum(self.shards)):
            pass
        if not self.offloads:
            for group in self.sub_groups:
                self.norms(self.shards[p] for p in group)
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
        for p in sorted(self._persisted):
            # Persistent parameters are gathered after the step, each straight into a buffer of its own.
            is_whole = self.world_size == 1 and not (self.offloads_parameters and self.has_own_host)
            size = 0 if is_whole else settings.weight_bytes * self.world_size * self.shards[p]
            self.available[p] = self._hold(ledger.alloc(size, GATHERED)) if size else None
        self.num_available = 0
        for block in self.secondary.values():
            self.param_ledger.free(block)
        self.secondary.clear()
