"""What to change where a target was missed: the changes that act on the largest parts of the planned memory."""

from __future__ import annotations

from dist_trainer.config.request import Request
from dist_trainer.memory.advice.nearest import MOST_RANKS_A_HOST, Change, Setup, changes
from dist_trainer.memory.engines.settings import Settings, read_settings
from dist_trainer.memory.plan import RankPlan
from dist_trainer.memory.targets import CPU, Verdict
from dist_trainer.report.reading.asked import Asked
from dist_trainer.units import format_bytes

MAX_NUM_REMEDIES = 4
WORTH_SAYING = 0.02
FOREIGN_FRACTION = 0.05

_STATES = ("optimizer states", "master weights")


def remedies(asked: Asked, verdict: Verdict) -> list[str]:
    """Lines for people, the change that acts on most bytes first; changes already in force are left out.

    A line says which parts of the memory a change acts on and how much they hold, which is more than it saves.
    """
    return [*_not_ours(asked, verdict), *_changes(asked, verdict)]


def _not_ours(asked: Asked, verdict: Verdict) -> list[str]:
    """Memory that no setting of this run could save."""
    if verdict.peak_bytes is None:
        return []
    if verdict.process_bytes is not None:
        foreign_bytes = verdict.peak_bytes - verdict.process_bytes
        if foreign_bytes > FOREIGN_FRACTION * verdict.peak_bytes:
            whose = "this rank" if asked.is_training else "the command"
            return [f"about {format_bytes(foreign_bytes)} on the GPU is not of {whose}: see what else runs there"]
    for prediction in verdict.predictions:
        more_bytes = verdict.peak_bytes - prediction.high_bytes
        if prediction.quantity == "NVML used" and more_bytes > 0:
            return [f"{format_bytes(more_bytes)} was in use above the plan's upper bound: the plan does not explain it"]
    return []


def _changes(asked: Asked, verdict: Verdict) -> list[str]:
    if not asked.is_training or asked.run is None or asked.deepspeed is None:
        return []
    if asked.plan is None or asked.plan.device == CPU or verdict.rank is None:
        return ["what the memory is made of is not known: no plan for a GPU is in the run's folder"]
    plan = asked.plan.of(verdict.rank)
    settings = read_settings(asked.deepspeed, cuda=True)
    num_ranks_a_host = min(asked.plan.world_size, MOST_RANKS_A_HOST)
    setup = Setup(Request(), asked.plan.world_size, num_ranks_a_host, MOST_RANKS_A_HOST)
    found = [
        (_held(plan, parts), _line(change, plan, parts))
        for change in changes(setup, settings, loss=asked.run.model.loss)
        if (parts := _touched(change, settings))
    ]
    slack_bytes = plan.parts.get("allocator slack", 0)
    if not asked.run.memory.expandable_segments:
        line = f"allocator slack holds {format_bytes(slack_bytes)}: --set memory.expandable_segments=true"
        found.append((slack_bytes, line))
    worth = [(held, line) for held, line in found if held >= WORTH_SAYING * sum(plan.parts.values())]
    worth.sort(key=lambda one: one[0], reverse=True)
    return [line for _, line in worth[:MAX_NUM_REMEDIES]]


def _touched(change: Change, settings: Settings) -> tuple[str, ...]:
    """The parts of a plan that the change makes smaller."""
    if change.kind == "stage":
        if change.what == "ZeRO-3":
            return ("parameters",)
        return ("gradients",) if settings.stage else ("gradients", *_STATES)
    if change.kind == "ranks":
        by_stage: tuple[str, ...] = ()
        if settings.stage >= 1:
            by_stage += _STATES if settings.offload_optimizer == "none" else ()
        if settings.stage >= 2:
            by_stage += ("gradients",)
        if settings.stage >= 3:
            by_stage += ("parameters",)
        return by_stage
    return {
        "bucket": ("buckets",),
        "overlap": ("buckets",),
        "live": ("gathered parameters",),
        "loss": ("logits and loss",),
        "checkpointing": ("activations",),
        "batch": ("activations", "logits and loss"),
        "precision": ("activations", "parameters", "gradients"),
        "offload": _STATES,
        "states": _STATES,
    }.get(change.kind, ())


def _held(plan: RankPlan, parts: tuple[str, ...]) -> int:
    return sum(plan.parts.get(part, 0) for part in parts)


def _line(change: Change, plan: RankPlan, parts: tuple[str, ...]) -> str:
    present = [part for part in parts if plan.parts.get(part)]
    names = " and ".join(filter(None, (", ".join(present[:-1]), present[-1]))) if present else ""
    verb = "hold" if len(present) > 1 or names.endswith("s") else "holds"
    return f"{names} {verb} {format_bytes(_held(plan, parts))}: {change.what} ({change.cost}), {change.typed}"
