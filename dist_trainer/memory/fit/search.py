"""Searches for settings that fit a GPU and a target, the cheapest first.

The choices are ZeRO stage, offload, precision, the precision of gradient sums, activation checkpointing and micro
batch; accumulation follows from the global batch. Three things keep the number of plans small:

- Memory never falls as the micro batch grows, so for each combination of the other choices the largest micro batch that
  fits is found by bisection.
- A larger micro batch never costs more, so combinations are visited in order of the cost at their largest micro batch,
  until none that is left can be among the cheapest.
- The bytes of trace and states, and next the allocated bytes, are lower bounds of what NVML will show; the full plan is
  made only if they fit.
"""

from __future__ import annotations

import heapq
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dist_trainer.config.request import Request, Switches
from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.disk import cannot_write, write_text
from dist_trainer.errors import UserError
from dist_trainer.memory import gpus
from dist_trainer.memory.engines.keys import unmodelled
from dist_trainer.memory.fit.candidates import Candidate, MemoryLimits, Planner
from dist_trainer.memory.fit.choices import Choice, choices, micro_batches
from dist_trainer.memory.fit.cost import assumptions
from dist_trainer.memory.fit.reasons import helps, rejected
from dist_trainer.memory.planner.planner import PlannedDevice

NUM_RANKED = 6
# Fraction of the GPU kept free for what context and allocator may take beyond the plan. A target has no such headroom.
CARD_HEADROOM = 0.05


@dataclass(frozen=True)
class Fit:
    """`ranking`: the cheapest candidates that fit; those that may affect what is learned come after all others.
    `rejected`: neighbours of the winner, with the reason why each is not chosen.

    If nothing fits, `nearest` misses the limits by least, and `helps` are lines about what would fit. `num_planned` of
    `num_candidates` were planned; the others follow from them.
    """

    world_size: int
    limits: MemoryLimits
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


def at_batch(request: Request, global_batch: int, world_size: int) -> Request:
    """The request at this global batch, so that everything that depends on it (steps of phases given in tokens,
    schedules) is resolved for it. The requested micro batch is kept; `search` reports a batch that it does not divide.
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
    ranks_a_host: int | None = None,
    has_bf16: bool = True,
    switches: Switches | None = None,
    on_plan: Callable[[], None] = lambda: None,
) -> Fit:
    """Finds what fits the device and the run file's target. `global_batch`: sequences per optimizer step.
    `ranks_a_host` None: all ranks are on one host. `switches`: what the user has fixed. `on_plan` is called after each
    plan.

    Raises UserError for a global batch that the ranks do not divide, a device with unknown memory, and switches that
    leave no choice.
    """
    started_s = time.perf_counter()
    fixed = switches or Switches()
    limits = _limits(resolved, device, host_bytes, ranks_a_host or world_size)
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
    planner = Planner(resolved, device, limits, world_size, global_batch, on_plan)
    ranking = _ranking(planner, found, sizes)
    nearest = None
    if not ranking:
        smallest = [planner.plan(replace(choice, micro_batch=sizes[0])) for choice in found]
        nearest = min(smallest, key=lambda one: (not limits.hold_on_host(one.rank), one.needed_bytes, one.risk))
    return Fit(
        world_size=world_size,
        limits=limits,
        ranking=tuple(ranking),
        rejected=tuple(rejected(planner, ranking[0], found, sizes)) if ranking else (),
        nearest=nearest,
        helps=() if nearest is None else tuple(helps(planner, nearest)),
        assumptions=(assumptions(planner.speeds, device.name), *unmodelled(resolved.deepspeed)),
        num_candidates=len(found) * len(sizes),
        num_planned=len(planner.planned),
        seconds=time.perf_counter() - started_s,
    )


def _limits(resolved: ResolvedRun, device: PlannedDevice, host_bytes: int | None, ranks_a_host: int) -> MemoryLimits:
    if device.num_bytes is None:
        raise UserError(
            "the memory of the GPU is not known",
            where="--fit",
            hint="say --gpu NAME, or --gpu-memory 24GiB",
        )
    usable_bytes = round(device.num_bytes * (1 - CARD_HEADROOM))
    targets = resolved.run.targets
    if targets is not None and targets.target_bytes < usable_bytes:
        return MemoryLimits(targets.target_bytes, "the target", host_bytes, ranks_a_host)
    return MemoryLimits(usable_bytes, f"{1 - CARD_HEADROOM:.0%} of the card", host_bytes, ranks_a_host)


def _ranking(planner: Planner, found: Sequence[Choice], sizes: Sequence[int]) -> list[Candidate]:
    """The most preferred candidates that fit, in order of preference; the first one planned exactly."""
    order = itertools.count()
    # A best-first search: a choice not bounded yet is queued under its lowest possible cost, that of the largest size.
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


def _num_that_may_fit(planner: Planner, choice: Choice, sizes: Sequence[int]) -> int:
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        if planner.may_fit(replace(choice, micro_batch=sizes[middle])):
            low = middle + 1
        else:
            high = middle
    return low


def write_config(candidate: Candidate, path: Path) -> None:
    """Writes the candidate as a complete DeepSpeed JSON. Raises UserError if the file cannot be written."""
    try:
        write_text(path, json.dumps(candidate.config, indent=2) + "\n")
    except OSError as error:
        raise cannot_write("cannot write the DeepSpeed JSON", error, path) from error
