"""Stage 3: every parameter is cut over the ranks, gathered before a module needs it and let go of afterwards.

Mirrors DeepSpeed 0.19.8: zero/stage3.py (buckets, gradients, the step) and zero/partitioned_param_coordinator.py (what
is fetched, prefetched and released when). The first forward and backward only record the order; from the second on it
is known, and prefetching and reuse apply.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from dist_trainer.memory.engines.ledger import BUCKETS, GATHERED, GRADIENTS, MASTER, PARAMETERS, TEMPORARIES, Block
from dist_trainer.memory.engines.partitions import shard_numel
from dist_trainer.memory.engines.stage0 import Engine

# stage3.py takes the norm of an offloaded gradient in parts of so many elements.
NORM_ELEMENTS = 250_000_000


@dataclass
class _Gather:
    """One all-gather in flight: the flat buffer lives until the last of its parameters has been waited for."""

    parameters: list[int]
    flat: Block | None
    is_copied: bool = False
    waiting: set[int] = field(default_factory=set)


class Zero3Engine(Engine):
    """Every parameter in shards; see the module."""

    def init(self) -> None:
        super().init()
        settings, ledger, world = self.settings, self.ledger, self.world_size
        size, master = settings.weight_bytes, settings.master_bytes
        self.offloads = settings.offload_optimizer != "none"
        self.offloads_parameters = settings.offload_param != "none"
        # On a CPU what is offloaded is where it was.
        self.has_own_host = self.host is not ledger
        self.shards = [shard_numel(numel, world) for numel in self.numels]
        pieces = []
        param_ledger = self.host if self.offloads_parameters else ledger
        for p, shard in enumerate(self.shards):
            pieces.append(param_ledger.alloc(size * shard, PARAMETERS))
            ledger.free(self.weights[p])
        total = sum(self.shards)
        ledger.empty_cache()
        if self.built_on_device:
            # Defragmenting goes through a flat buffer on the host, which on a CPU is the buffer itself.
            param_ledger.alloc(size * total, PARAMETERS)
            for block in pieces:
                param_ledger.free(block)
        else:
            for block in pieces:
                param_ledger.free(block)
            param_ledger.alloc(size * total, PARAMETERS)
        self.sub_groups = self._sub_groups()
        state_ledger = self.host if self.offloads else ledger
        sizes = [sum(self.shards[p] for p in group) for group in self.sub_groups]
        for numel in sizes:
            # Cast, then cloned; weights that are fp32 already are cloned all the same.
            with state_ledger.temporary(master * numel if master != size else 0):
                state_ledger.alloc(master * numel, MASTER)
        if self.offloads:
            for numel in sizes:
                self.host.alloc(master * numel, GRADIENTS)
        else:
            with ledger.temporary(master * max(sizes)):
                pass
        if settings.contiguous_gradients:
            # One bucket for each dtype of communication: autocast has its own beside the weights'.
            kinds = settings.reduction_bytes + (settings.weight_bytes if settings.autocast else 0)
            ledger.alloc(kinds * settings.reduce_bucket_size, BUCKETS)
        grad_ledger = self.host if self.offloads else ledger
        grad_ledger.alloc(settings.accum_bytes * total, GRADIENTS)
        self._persisted = self._persistent()
        self.available: dict[int, Block | None] = {}
        self.active: dict[int, set[int]] = {p: set() for p in range(len(self.numels))}
        self.in_flight: dict[int, _Gather] = {}
        self.num_available = 0
        self.recorded: list[int] = []
        self.is_complete = False
        self.step_id = 0
        self.queue: deque[tuple[int, int]] = deque()
        self.last_fetched: dict[int, int] = {}
        self.bucket: list[int] = []
        self.bucket_elements = 0
        self.active_backward: dict[int, None] = {}

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
        """Parameters too small to be worth letting go of, up to the threshold of the model."""
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
            self._to_release: dict[int, set[int]] = {}
        if self.is_complete:
            self.queue = deque(self.parameter_order)
        self.last_fetched = {}
        self.step_id = 0
        self.num_available = 0

    def forward_enter(self, module: int) -> None:
        self._fetch(module)

    def forward_exit(self, module: int) -> None:
        self._release_module(module)

    def backward_enter(self, module: int) -> None:
        self.active_backward[module] = None
        self._fetch(module)

    def backward_exit(self, module: int) -> None:
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
        size = self.settings.weight_bytes
        if self.world_size == 1 and not (self.offloads_parameters and self.has_own_host):
            for p in wanted:
                self.in_flight[p] = _Gather([p], None, is_copied=True, waiting={p})
            return
        flat = self.ledger.alloc(size * self.world_size * sum(self.shards[p] for p in wanted), GATHERED)
        gather = _Gather(sorted(wanted), flat, waiting=set(wanted))
        for p in wanted:
            self.in_flight[p] = gather

    def _wait(self, parameter: int) -> None:
        gather = self.in_flight.pop(parameter)
        size = self.settings.weight_bytes
        if len(gather.parameters) == 1:
            self.available[parameter] = gather.flat
            return
        if not gather.is_copied:
            gather.is_copied = True
            for p in gather.parameters:
                self.available[p] = self.ledger.alloc(size * self.numels[p], GATHERED)
        gather.waiting.discard(parameter)
        if not gather.waiting:
            self.ledger.free(gather.flat)

    def _release_module(self, module: int) -> None:
        releasable = self._releasable(module) if self.is_complete else set(self.modules[module])
        for p in self.modules[module]:
            self.active[p].discard(module)
            if p in releasable:
                self._release(p)

    def _releasable(self, module: int) -> set[int]:
        kept = self._to_release.get(self.step_id)
        if kept is not None and self.order[self.step_id - 1] == module:
            return kept
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
            self.ledger.free(self.available.pop(parameter))
            self.num_available -= self.numels[parameter]

    def gradient(self, parameter: int, block: Block) -> None:
        numel = self.numels[parameter]
        if self.bucket and self.bucket_elements + numel > self.settings.reduce_bucket_size:
            self._reduce()
        self.gradients[parameter] = self.ledger.moved(block, GRADIENTS)
        if self.settings.contiguous_gradients and self.bucket_elements + numel <= self.settings.reduce_bucket_size:
            self.ledger.free(self.gradients.pop(parameter))
        self.bucket.append(parameter)
        self.bucket_elements += numel

    def _reduce(self) -> None:
        """One flat copy of the bucket with each parameter padded to the ranks, unless it is one that needs none."""
        settings = self.settings
        padded = self.world_size * sum(self.shards[p] for p in self.bucket)
        size, comm = settings.weight_bytes, settings.reduction_bytes
        kept = 0
        if self.bucket and settings.reduce_scatter:
            is_view = len(self.bucket) == 1 and self.numels[self.bucket[0]] % self.world_size == 0
            upcast = comm * self.bucket_elements if comm != size else 0
            flat = 0 if is_view else comm * padded
            owned = sum(self.shards[p] for p in self.bucket)
            widened = settings.accum_bytes * owned if settings.grad_accum_dtype != settings.comm_dtype else 0
            temporary = self.ledger.temporary
            with temporary(upcast, BUCKETS), temporary(flat, BUCKETS), temporary(widened, BUCKETS):
                pass
            kept = (widened or flat or upcast) if self.offloads else 0
        with self.ledger.temporary(kept, BUCKETS):
            for p in self.bucket:
                if self.offloads:
                    self._offload(self.shards[p])
                self.ledger.free(self.gradients.pop(p, None))
        self.bucket, self.bucket_elements = [], 0

    def _offload(self, shard: int) -> None:
        """A gradient is added up on the device; at the boundary its norm is taken, and it is cast."""
        accum, master = self.settings.accum_bytes, self.settings.master_bytes
        with self.ledger.temporary(accum * shard if self.has_own_host else 0):
            if self.is_boundary:
                self.norms([min(shard, NORM_ELEMENTS)])
                with self.ledger.temporary(master * shard if master != accum else 0):
                    pass

    def end_backward(self) -> None:
        self._reduce()
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
        # A boolean for each element of the gradients: infinite or not a number.
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
        self._gather(sorted(self._persisted))
        for p in sorted(self._persisted):
            self._wait(p)
        self.num_available = 0
