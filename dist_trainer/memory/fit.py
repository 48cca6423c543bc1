"""Searches the settings for those that fit a card and a target, cheapest first.

The choices: ZeRO stage, offload, precision, the precision of gradient sums, activation checkpointing and micro batch;
accumulation follows from the global batch. Three things keep the number of plans small:

- Memory never falls as the micro batch grows, so for each of the other choices the largest micro batch that fits is
  found by bisection.
- A larger micro batch never costs more, so choices are looked at in the order of what their largest would cost, until
  nothing that is left can be among the cheapest.
- What the trace and the states hold, and then what is allocated, are lower bounds of what NVML shows: the rest is
  worked out only where they fit.
"""

from __future__ import annotations

import heapq
import itertools
import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dist_trainer.config.optimisations import Switches
from dist_trainer.config.resolve import Request, ResolvedRun
from dist_trainer.errors import UserError
from dist_trainer.memory import gpus
from dist_trainer.memory.advice import held_states
from dist_trainer.memory.choices import COARSE_WEIGHTS, NEUTRAL, Choice, choices, configure, micro_batches, neighbours
from dist_trainer.memory.cost import Cost, assumptions, estimate
from dist_trainer.memory.plan import RankPlan, needed
from dist_trainer.memory.planner import PlannedDevice, plan_rank, trace_spec
from dist_trainer.memory.scaling import ScaledTraces, peak_bytes
from dist_trainer.memory.settings import Settings, read_settings, unmodelled
from dist_trainer.memory.trace import Trace, TraceSpec
from dist_trainer.model.size import num_parameters
from dist_trainer.units import format_gb

NUM_RANKED = 6
# Of the card: what the context and the allocator may take beyond the plan. A target is compared as the verdict will.
CARD_HEADROOM = 0.05
MORE_RANKS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Limits:
    """What has to hold. `host_bytes` is for all ranks of a host together, None where it is not known."""

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
    """A choice with its memory (of the first or the last rank, whichever needs more) and its estimated cost."""

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


@dataclass(frozen=True)
class Fit:
    """`ranking`: the cheapest that fit, those that may change what is learned after all others. `rejected`: what is
    one step from the winner, with why it is not chosen.

    Where nothing fits, `nearest` misses by least, and `helps` are lines on what would fit. `num_planned` of the
    `num_candidates` were planned; the others follow from them.
    """

    world_size: int
    limits: Limits
    ranking: tuple[Candidate, ...]
    rejected: tuple[tuple[str, str], ...]
    nearest: Candidate | None
    helps: tuple[str, ...]
    assumptions: tuple[str, ...]
    num_candidates: int
    num_planned: int
    seconds: float

    @property
    def winner(self) -> Candidate | None:
        return self.ranking[0] if self.ranking else None


class _Planner:
    """Plans choices of one run on so many ranks."""

    def __init__(
        self, resolved: ResolvedRun, device: PlannedDevice, limits: Limits, world_size: int, global_batch: int
    ) -> None:
        self.resolved = resolved
        self.device = device
        self.limits = limits
        self.world_size = world_size
        self.global_batch = global_batch
        self.speeds = gpus.speeds(device.name)
        self.sequence_length = max(phase.sequence_length for phase in resolved.phases)
        self.num_parameters = num_parameters(resolved.run.model)
        self.traces = ScaledTraces()
        self.planned: set[Choice] = set()
        # By the trace's identity; `traces` keeps each alive.
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
        """In this order choices are preferred; a larger micro batch never comes later."""
        return choice.risk(self.accumulation(choice)), self.cost(choice).total_s

    def may_fit(self, choice: Choice) -> bool:
        """Whether lower bounds of what the first rank needs are within the limits."""
        settings = self.settings(choice)
        trace = self._trace(settings)
        if self._least_bytes(trace, settings) > self.limits.num_bytes:
            return False
        self.planned.add(choice)
        return self.limits.hold(self._rank(trace, settings, 0, is_quick=True, enough_bytes=0))

    def plan(self, choice: Choice) -> Candidate:
        """The choice in full, from a trace scaled to its micro batch."""
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
        """The choice as the `plan` command plans it."""
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
        """What the model's own pass holds at its peak, beside weights, masters and states."""
        if id(trace) not in self._pass_bytes:
            self._pass_bytes[id(trace)] = peak_bytes(trace)
        held = held_states(settings, self.world_size, with_gradients=False).per_parameter * self.num_parameters
        return self._pass_bytes[id(trace)] + round(held)

    def _spec(self, settings: Settings) -> TraceSpec:
        return trace_spec(self.resolved, settings, sequence_length=self.sequence_length, cuda=True)

    def _rank(
        self, trace: Trace, settings: Settings, rank: int, *, is_quick: bool, enough_bytes: int | None = None
    ) -> RankPlan:
        return plan_rank(
            trace,
            settings,
            rank,
            self.world_size,
            self.device,
            expandable=self.resolved.run.memory.expandable_segments,
            is_quick=is_quick,
            enough_bytes=self.limits.num_bytes if enough_bytes is None and is_quick else enough_bytes,
        )


def at_batch(request: Request, global_batch: int, world_size: int) -> Request:
    """The request at this global batch, so that what follows from it (steps of phases given in tokens, schedules) is
    resolved for it. The micro batch that was asked for stays; a batch that does not divide is left to `search`.
    """
    micro_batch = request.switches.micro_batch or 1
    accumulation = global_batch // (world_size * micro_batch)
    if not accumulation:
        return request
    switches = replace(request.switches, micro_batch=micro_batch, accumulation=accumulation)
    return replace(request, switches=switches)


def search(
    resolved: ResolvedRun,
    *,
    world_size: int,
    device: PlannedDevice,
    global_batch: int,
    host_bytes: int | None = None,
    ranks_a_host: int = 1,
    has_bf16: bool = True,
    switches: Switches | None = None,
) -> Fit:
    """Finds what fits the device and the run file's target. `global_batch` is in sequences for each optimizer step;
    `switches` are what the user has fixed.

    Raises UserError for a global batch that the ranks do not divide, a device whose memory is not known, and switches
    that leave no choice.
    """
    started_s = time.perf_counter()
    fixed = switches or Switches()
    limits = _limits(resolved, device, host_bytes, ranks_a_host)
    sizes = micro_batches(global_batch, world_size, fixed.micro_batch)
    half: Any = "bf16" if has_bf16 and gpus.has_bf16(device.name) else "fp16"
    found = list(choices(resolved.deepspeed, half, fixed))
    if not found:
        raise UserError(
            "nothing is left to search",
            where="--precision",
            found=fixed.precision,
            hint="leave the switch out, or name a card that computes in it",
        )
    planner = _Planner(resolved, device, limits, world_size, global_batch)
    ranking = _ranking(planner, found, sizes)
    nearest = None
    if not ranking:
        smallest = [planner.plan(replace(choice, micro_batch=sizes[0])) for choice in found]
        nearest = min(smallest, key=lambda one: (not limits.hold_on_host(one.rank), one.needed_bytes, one.risk))
    return Fit(
        world_size=world_size,
        limits=limits,
        ranking=tuple(ranking),
        rejected=tuple(_rejected(planner, ranking[0], found, sizes)) if ranking else (),
        nearest=nearest,
        helps=() if nearest is None else tuple(_helps(planner, nearest)),
        assumptions=(assumptions(planner.speeds, device.name), *unmodelled(resolved.deepspeed)),
        num_candidates=len(found) * len(sizes),
        num_planned=len(planner.planned),
        seconds=time.perf_counter() - started_s,
    )


def _limits(resolved: ResolvedRun, device: PlannedDevice, host_bytes: int | None, ranks_a_host: int) -> Limits:
    if device.num_bytes is None:
        raise UserError(
            "the memory of the GPU is not known",
            where="--fit",
            hint="say --gpu NAME, or --gpu-memory 24GiB",
        )
    usable_bytes = round(device.num_bytes * (1 - CARD_HEADROOM))
    targets = resolved.run.targets
    if targets is not None and targets.target_bytes < usable_bytes:
        return Limits(targets.target_bytes, "the target", host_bytes, ranks_a_host)
    return Limits(usable_bytes, f"{1 - CARD_HEADROOM:.0%} of the card", host_bytes, ranks_a_host)


def _ranking(planner: _Planner, found: Sequence[Choice], sizes: Sequence[int]) -> list[Candidate]:
    """The most preferred that fit, in their order; the first of them planned exactly."""
    order = itertools.count()
    # What has not been bounded yet stands with the best that it could be.
    queue = [
        (planner.rank_key(replace(choice, micro_batch=sizes[-1])), next(order), choice, len(sizes), False)
        for choice in found
    ]
    heapq.heapify(queue)
    ranking: list[Candidate] = []
    while queue and len(ranking) < NUM_RANKED:
        _, _, choice, num_sizes, is_bounded = heapq.heappop(queue)
        if not is_bounded:
            num_sizes = _num_that_may_fit(planner, choice, sizes)
        elif planner.fits(choice) and (ranking or planner.limits.hold(planner.plan_exactly(choice).rank)):
            ranking.append(planner.plan(choice))
            continue
        else:
            num_sizes -= 1
        if num_sizes:
            smaller = replace(choice, micro_batch=sizes[num_sizes - 1])
            heapq.heappush(queue, (planner.rank_key(smaller), next(order), smaller, num_sizes, True))
    return ranking


def _num_that_may_fit(planner: _Planner, choice: Choice, sizes: Sequence[int]) -> int:
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        if planner.may_fit(replace(choice, micro_batch=sizes[middle])):
            low = middle + 1
        else:
            high = middle
    return low


def _rejected(
    planner: _Planner, winner: Candidate, found: Collection[Choice], sizes: Sequence[int]
) -> Iterator[tuple[str, str]]:
    for label, choice in neighbours(winner.choice, found, sizes):
        yield label, _why_not(planner, winner, planner.plan(choice))


def _why_not(planner: _Planner, winner: Candidate, other: Candidate) -> str:
    limits = planner.limits
    if other.needed_bytes > limits.num_bytes:
        part, num_bytes = max(other.rank.parts.items(), key=lambda item: item[1])
        return (
            f"{format_gb(other.needed_bytes)}, over {limits.name} ({format_gb(limits.num_bytes)}) by "
            f"{format_gb(other.needed_bytes - limits.num_bytes)}; peak in {other.rank.peak_phase}, "
            f"most of it {part} ({format_gb(num_bytes)})"
        )
    figure = format_gb(other.needed_bytes)
    if not limits.hold_on_host(other.rank):
        return f"{figure} would fit, but {_host_miss(limits, other.rank)}"
    ratio = other.cost.total_s / winner.cost.total_s
    cost = f"{ratio:.2f} x the cost"
    if other.risk > winner.risk:
        return f"fits in {figure} at {cost}, but {risk_line(other)}"
    more = {name: seconds - winner.cost.parts[name] for name, seconds in other.cost.parts.items()}
    return f"fits in {figure}, but {cost}: {max(more, key=lambda name: more[name])}"


def _host_miss(limits: Limits, rank: RankPlan) -> str:
    assert limits.host_bytes is not None
    wanted = rank.host_bytes * limits.ranks_a_host
    ranks = "1 rank" if limits.ranks_a_host == 1 else f"{limits.ranks_a_host} ranks"
    return f"{ranks} need {format_gb(wanted)} of the host, which has {format_gb(limits.host_bytes)}"


def risk_line(candidate: Candidate) -> str:
    """What the candidate may cost beyond time; empty where that is nothing."""
    if candidate.risk == NEUTRAL:
        return ""
    precision = candidate.choice.precision
    if candidate.risk == COARSE_WEIGHTS:
        return "16-bit master weights lose what is small beside them: the loss may end higher"
    return f"it sums the gradients of {candidate.accumulation} micro batches in {precision}, which loses small ones"


def _helps(planner: _Planner, nearest: Candidate) -> list[str]:
    """What would fit where nothing does: more ranks, and the other loss."""
    lines = []
    if not planner.limits.hold_on_host(nearest.rank):
        lines.append(_host_miss(planner.limits, nearest.rank))
    best = replace(nearest.choice, offload="none", checkpointing=True)
    if best.precision == "bf16 states":
        best = replace(best, precision="bf16", sums_in_fp32=True)
    for times in MORE_RANKS:
        world_size = planner.world_size * times
        if planner.global_batch % world_size:
            break
        larger = _Planner(planner.resolved, planner.device, planner.limits, world_size, planner.global_batch)
        tried = [replace(best, stage=stage, micro_batch=1) for stage in (2, 3)]
        fitting = [choice for choice in tried if larger.fits(choice)]
        if fitting:
            found = larger.plan(min(fitting, key=larger.rank_key))
            lines.append(f"{world_size} ranks: {found.choice} takes {format_gb(found.needed_bytes)}")
            break
    else:
        lines.append(f"{planner.world_size * MORE_RANKS[-1]} ranks without offload are not enough either")
    run = planner.resolved.run
    if run.model.loss == "full":
        chunked = run.model_copy(update={"model": run.model.model_copy(update={"loss": "chunked"})})
        other = _Planner(
            replace(planner.resolved, run=chunked),
            planner.device,
            planner.limits,
            planner.world_size,
            planner.global_batch,
        )
        found = other.plan(nearest.choice)
        verdict = "which fits" if planner.limits.hold(found.rank) else "not enough by itself"
        lines.append(f"--set model.loss=chunked: {format_gb(found.needed_bytes)}, {verdict}")
    if planner.sequence_length > 1:
        lines.append("a shorter sequence length, or a card with more memory")
    return lines


def write_config(candidate: Candidate, path: Path) -> None:
    """The candidate as a complete DeepSpeed JSON. Raises UserError when the file cannot be written."""
    try:
        path.write_text(json.dumps(candidate.config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError("cannot write the DeepSpeed JSON", where=str(path), found=error.strerror) from error
