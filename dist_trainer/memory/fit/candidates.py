"""A choice of settings with its memory and cost, and the planner that plans many choices quickly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.memory import gpus
from dist_trainer.memory.advice.why import held_states
from dist_trainer.memory.engines.settings import Settings, read_settings
from dist_trainer.memory.fit.choices import Choice, configure
from dist_trainer.memory.fit.cost import Cost, estimate
from dist_trainer.memory.plan import RankPlan, needed
from dist_trainer.memory.planner.planner import PlannedDevice, plan_rank, trace_spec
from dist_trainer.memory.planner.scaling import ScaledTraces, peak_bytes
from dist_trainer.memory.trace.record import Trace, TraceSpec
from dist_trainer.model.size import num_parameters


@dataclass(frozen=True)
class MemoryLimits:
    """The limits on memory: `num_bytes` for each GPU, called `name` in messages; `host_bytes` for all ranks of a host
    together, None if not known.
    """

    num_bytes: int
    name: str
    host_bytes: int | None
    ranks_a_host: int

    def hold(self, rank: RankPlan) -> bool:
        return needed(rank).num_bytes <= self.num_bytes and self.hold_on_host(rank)

    def hold_on_host(self, rank: RankPlan) -> bool:
        return self.host_bytes is None or rank.host_bytes * self.ranks_a_host <= self.host_bytes


@dataclass(frozen=True)
class Candidate:
    """A choice with the memory of its first or last rank, whichever needs more, and its estimated cost."""

    choice: Choice
    accumulation: int
    rank: RankPlan
    cost: Cost
    config: dict[str, Any]

    @property
    def needed_bytes(self) -> int:
        return needed(self.rank).num_bytes

    @property
    def risk(self) -> int:
        return self.choice.risk(self.accumulation)


class Planner:
    """Plans choices for one run at one world size."""

    def __init__(
        self,
        resolved: ResolvedRun,
        device: PlannedDevice,
        limits: MemoryLimits,
        world_size: int,
        global_batch: int,
        on_plan: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_plan` is called after each plan."""
        self.resolved = resolved
        self.device = device
        self.limits = limits
        self.world_size = world_size
        self.global_batch = global_batch
        self.on_plan = on_plan
        self.speeds = gpus.speeds(device.name)
        self.sequence_length = max(phase.sequence_length for phase in resolved.phases)
        self.num_parameters = num_parameters(resolved.run.model)
        self.traces = ScaledTraces()
        self.planned: set[Choice] = set()
        # Keyed by id(trace); `traces` holds a reference to each, so that ids are not reused.
        self._pass_bytes: dict[int, int] = {}
        self._candidates: dict[Choice, Candidate] = {}

    def accumulation(self, choice: Choice) -> int:
        return self.global_batch // (self.world_size * choice.micro_batch)

    def config(self, choice: Choice) -> dict[str, Any]:
        return configure(self.resolved.deepspeed, choice, self.accumulation(choice), self.world_size)

    def settings(self, choice: Choice) -> Settings:
        return read_settings(self.config(choice), cuda=True)

    def cost(self, choice: Choice) -> Cost:
        return estimate(
            self.settings(choice),
            num_parameters=self.num_parameters,
            num_layers=self.resolved.run.model.num_layers,
            sequence_length=self.sequence_length,
            world_size=self.world_size,
            speeds=self.speeds,
        )

    def rank_key(self, choice: Choice) -> tuple[int, float]:
        """Sort key, the preferred choice first. A larger micro batch never has a larger key."""
        return choice.risk(self.accumulation(choice)), self.cost(choice).total_s

    def may_fit(self, choice: Choice) -> bool:
        """Whether lower bounds of rank 0's memory are within the limits."""
        settings = self.settings(choice)
        trace = self._trace(settings)
        if self._least_bytes(trace, settings) > self.limits.num_bytes:
            return False
        self.planned.add(choice)
        return self.limits.hold(self._rank(trace, settings, 0, is_quick=True, enough_bytes=0))

    def plan(self, choice: Choice) -> Candidate:
        """The full plan of the choice, from a trace scaled to its micro batch."""
        if choice not in self._candidates:
            self.planned.add(choice)
            settings = self.settings(choice)
            trace = self._trace(settings)
            worst = self._rank(trace, settings, 0, is_quick=True)
            if self.world_size > 1 and settings.stage and self.limits.hold(worst):
                last = self._rank(trace, settings, self.world_size - 1, is_quick=True, enough_bytes=0)
                if last.allocated.num_bytes > worst.allocated.num_bytes:
                    worst = self._rank(trace, settings, self.world_size - 1, is_quick=True)
            self._candidates[choice] = self._candidate(choice, worst)
        return self._candidates[choice]

    def plan_exactly(self, choice: Choice) -> Candidate:
        """The choice as the `plan` command would plan it."""
        settings = self.settings(choice)
        trace = self.traces.get_exact(self._spec(settings))
        ranks = [self._rank(trace, settings, rank, is_quick=False) for rank in sorted({0, self.world_size - 1})]
        found = self._candidate(choice, max(ranks, key=lambda rank: needed(rank).num_bytes))
        self._candidates[choice] = found
        return found

    def fits(self, choice: Choice) -> bool:
        return self.limits.hold(self.plan(choice).rank)

    def _candidate(self, choice: Choice, rank: RankPlan) -> Candidate:
        return Candidate(choice, self.accumulation(choice), rank, self.cost(choice), self.config(choice))

    def _trace(self, settings: Settings) -> Trace:
        return self.traces.get(self._spec(settings))

    def _least_bytes(self, trace: Trace, settings: Settings) -> int:
        """A lower bound: the peak of the model's own pass, plus weights, master weights and optimizer states."""
        if id(trace) not in self._pass_bytes:
            self._pass_bytes[id(trace)] = peak_bytes(trace)
        held = held_states(settings, self.world_size, with_gradients=False).per_parameter * self.num_parameters
        return self._pass_bytes[id(trace)] + round(held)

    def _spec(self, settings: Settings) -> TraceSpec:
        return trace_spec(self.resolved, settings, sequence_length=self.sequence_length, cuda=True)

    def _rank(
        self, trace: Trace, settings: Settings, rank: int, *, is_quick: bool, enough_bytes: int | None = None
    ) -> RankPlan:
        made = plan_rank(
            trace,
            settings,
            rank,
            self.world_size,
            self.device,
            expandable=self.resolved.run.memory.expandable_segments,
            num_hosts=-(-self.world_size // self.limits.ranks_a_host),
            is_quick=is_quick,
            enough_bytes=self.limits.num_bytes if enough_bytes is None and is_quick else enough_bytes,
        )
        self.on_plan()
        return made
