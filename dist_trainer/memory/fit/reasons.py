"""Why the search chose as it did: the neighbours of the winner, and what would help if nothing fits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from dist_trainer.memory.fit.candidates import Candidate, MemoryLimits, Planner
from dist_trainer.memory.fit.choices import COARSE_WEIGHTS, NEUTRAL, Choice, neighbours
from dist_trainer.memory.plan import RankPlan
from dist_trainer.units import counted, format_gb

MORE_RANKS = (2, 4, 8, 16)


def rejected(
    planner: Planner, winner: Candidate, found: Collection[Choice], sizes: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """For each neighbour of the winner: what is different, and why it was not chosen."""
    for label, choice in neighbours(winner.choice, found, sizes):
        yield label, _why_not(planner, winner, planner.plan(choice))


def _why_not(planner: Planner, winner: Candidate, other: Candidate) -> str:
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


def _host_miss(limits: MemoryLimits, rank: RankPlan) -> str:
    assert limits.host_bytes is not None
    wanted = rank.host_bytes * limits.ranks_a_host
    ranks = counted(limits.ranks_a_host, "rank")
    return f"{ranks} need {format_gb(wanted)} of the host, which has {format_gb(limits.host_bytes)}"


def risk_line(candidate: Candidate) -> str:
    """What the candidate may cost apart from time; empty if nothing."""
    if candidate.risk == NEUTRAL:
        return ""
    precision = candidate.choice.precision
    if candidate.risk == COARSE_WEIGHTS:
        return "16-bit master weights lose what is small beside them: the loss may end higher"
    return f"it sums the gradients of {candidate.accumulation} micro batches in {precision}, which loses small ones"


def helps(planner: Planner, nearest: Candidate) -> list[str]:
    """Lines about what would help if nothing fits: more ranks, another loss, or shorter sequences."""
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
        larger = Planner(planner.resolved, planner.device, planner.limits, world_size, planner.global_batch)
        tried = [replace(best, stage=stage, micro_batch=1) for stage in (2, 3)]
        fitting = [choice for choice in tried if larger.fits(choice)]
        if fitting:
            found = larger.plan(min(fitting, key=larger.rank_key))
            lines.append(f"{counted(world_size, 'rank')}: {found.choice} takes {format_gb(found.needed_bytes)}")
            break
    else:
        lines.append(f"{counted(planner.world_size * MORE_RANKS[-1], 'rank')} without offload are not enough either")
    run = planner.resolved.run
    if run.model.loss == "full":
        fused = run.model_copy(update={"model": run.model.model_copy(update={"loss": "fused"})})
        other = Planner(
            replace(planner.resolved, run=fused),
            planner.device,
            planner.limits,
            planner.world_size,
            planner.global_batch,
        )
        found = other.plan(nearest.choice)
        verdict = "which fits" if planner.limits.hold(found.rank) else "not enough by itself"
        lines.append(f"--set model.loss=fused: {format_gb(found.needed_bytes)}, {verdict}")
    if planner.sequence_length > 1:
        lines.append("a shorter sequence length, or a card with more memory")
    return lines
