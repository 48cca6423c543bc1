"""Which parameters a rank has whole at any time: gathered before a module needs them, ahead of time, and released.

Mirrors DeepSpeed 0.19.8's zero/partitioned_param_coordinator.py. The first forward and backward only record the order;
from the second on it is known, and prefetching and reuse apply.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dist_trainer.memory.engines.ledger import COMPUTE, GATHERED, GATHERING, Block, Ledger
from dist_trainer.memory.engines.settings import BYTES_OF, Settings


@dataclass
class _Gather:
    """One all-gather in flight. Its flat buffers, one for each dtype that is gathered, live until the last of its
    parameters has been waited for.
    """

    parameters: list[int]
    flats: list[Block]
    is_copied: bool = False
    waiting: set[int] = field(default_factory=set)


class ParameterCoordinator:
    """`available`: the gathered parameters and their blocks, of which `holders` counts the users; None for a parameter
    that needs no block. `active`: the modules that are using a parameter. `persisted`: those that are not released.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        *,
        modules: Sequence[Sequence[int]],
        numels: Sequence[int],
        shards: Sequence[int],
        world_size: int,
        is_whole: bool,
        gather_dtype: Callable[[int], str],
        before_release: Callable[[int], None],
    ) -> None:
        """`modules`: the parameters of each. `numels` and `shards`: elements of each parameter, whole and per rank.
        `is_whole`: the rank's shard is the whole parameter, and nothing is gathered.
        """
        self.settings = settings
        self.ledger = ledger
        self.modules = modules
        self.numels = numels
        self.shards = shards
        self.world_size = world_size
        self.is_whole = is_whole
        self.gather_dtype = gather_dtype
        self.before_release = before_release
        self.persisted = self._persistent()
        self.available: dict[int, Block | None] = {}
        self.holders: Counter[int] = Counter()
        self.saved: dict[int, tuple[int, Block]] = {}
        self.active: dict[int, set[int]] = {p: set() for p in range(len(numels))}
        self.in_flight: dict[int, _Gather] = {}
        self.num_available = 0
        self.recorded: list[int] = []
        self.is_complete = False
        self.step_id = 0
        self.queue: deque[tuple[int, int]] = deque()
        self.last_fetched: dict[int, int] = {}
        # The order of modules, and of their parameters with the step of each, once a whole micro batch was recorded.
        self.order: tuple[int, ...] = ()
        self.parameter_order: list[tuple[int, int]] = []

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

    def begin_micro_batch(self) -> None:
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

    def save(self, module: int, weight: int) -> None:
        """Autograd keeps the module's weight, if it is gathered, until `forget`."""
        block = self.available.get(weight)
        if block is not None:
            self.saved[weight] = (module, self._hold(block))

    def forget(self, weight: int) -> None:
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

    def fetch(self, module: int) -> None:
        """Makes the module's parameters whole; from the second micro batch on also gathers those that follow, ahead."""
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
        if self.is_whole:
            for p in wanted:
                self.in_flight[p] = _Gather([p], [], is_copied=True, waiting={p})
            return
        if self.settings.allgather_sequential:
            for p in wanted:
                self.in_flight[p] = _Gather([p], [self._flat([p])], waiting={p})
            return
        dtypes = sorted({self.gather_dtype(p) for p in wanted})
        sent = [[p for p in wanted if self.gather_dtype(p) == dtype] for dtype in dtypes]
        flats = [self._flat(members) for members in sent]
        gather = _Gather(sorted(wanted), flats, waiting=set(wanted))
        for p in wanted:
            self.in_flight[p] = gather

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

    def release_module(self, module: int) -> None:
        """Releases the module's parameters, except those that persist or are needed again soon."""
        releasable = self._releasable(module) if self.is_complete else set(self.modules[module])
        for p in self.modules[module]:
            self.active[p].discard(module)
            if p in releasable:
                self._release(p)

    def _releasable(self, module: int) -> set[int]:
        releasable = {p for p in self.modules[module] if p not in self.persisted}
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
        """Frees the parameter, if it is gathered and no module uses it."""
        if parameter in self.available and parameter not in self.in_flight and not self.active[parameter]:
            self.before_release(parameter)
            self._drop(self.available.pop(parameter))
            self.num_available -= self.numels[parameter]

    def leave(self, module: int) -> None:
        """Releases a module's parameters at the end of the backward pass, whether they are needed again or not."""
        for p in self.modules[module]:
            self.active[p].discard(module)
            if p not in self.persisted:
                self._release(p)

    def release_all(self) -> None:
        for p in list(self.in_flight):
            self._wait(p)
        for p in list(self.available):
            self.active[p].clear()
            self._release(p)

    def gather_persisted(self) -> None:
        """After the step: each straight into a buffer of its own."""
        for p in sorted(self.persisted):
            size = 0 if self.is_whole else self.settings.weight_bytes * self.world_size * self.shards[p]
            self.available[p] = self._hold(self.ledger.alloc(size, GATHERED)) if size else None
        self.num_available = 0
