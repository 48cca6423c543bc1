"""Why a plan exceeds its limit, by arithmetic: what is held in any case, and what ZeRO can partition away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dist_trainer.memory.engines.settings import Settings
from dist_trainer.memory.plan import Plan
from dist_trainer.units import format_count, format_gb


@dataclass(frozen=True)
class HeldStates:
    """Bytes per parameter of model states on one rank's device. `parts`: name -> (bytes, divided by how many ranks)."""

    parts: dict[str, tuple[float, int]]

    @property
    def per_parameter(self) -> float:
        return sum(size / ranks for size, ranks in self.parts.values())

    def __str__(self) -> str:
        words = (
            f"{size:g} {name}" + (f" / {ranks}" if ranks > 1 else "") for name, (size, ranks) in self.parts.items()
        )
        return " + ".join(words)


def held_states(settings: Settings, world_size: int, *, with_gradients: bool) -> HeldStates:
    """What is held throughout a step (ZeRO paper, Rajbhandari et al. 2020, section 3.1, as DeepSpeed implements it).

    From stage 1 on DeepSpeed keeps a master copy even of fp32 weights. Offloaded states are not on the device.
    """
    parts: dict[str, tuple[float, int]] = {}
    stage = settings.stage
    if settings.offload_param == "none" or stage < 3:
        parts["weights"] = (settings.weight_bytes, world_size if stage == 3 else 1)
    if with_gradients:
        parts["gradients"] = (settings.accum_bytes, world_size if stage >= 2 else 1)
    if settings.offload_optimizer == "none":
        sharded = world_size if stage >= 1 else 1
        if stage >= 1 or settings.dtype != "fp32":
            parts["master"] = (settings.master_bytes, sharded)
        if settings.states_per_parameter:
            parts["moments"] = (settings.state_bytes, sharded)
    return HeldStates(parts)


def arithmetic(
    plan: Plan, settings: Settings, num_parameters: int, *, limit_bytes: int, limit_name: str
) -> Iterator[str]:
    """Lines that say why the plan exceeds the limit: what is held in any case, and what ZeRO can partition away."""
    held = held_states(settings, plan.world_size, with_gradients=False)
    held_bytes = round(held.per_parameter * num_parameters)
    one, many = ("GPU", "GPUs") if plan.device == "cuda" else ("rank on a CPU", "ranks on a CPU")
    where = f"one {one}" if plan.world_size == 1 else f"each of {plan.world_size} {many}"
    bits = "fp32" if settings.dtype == "fp32" else "16-bit"
    line = (
        f"{bits} {plan.name} on {where} holds {held.per_parameter:.4g} bytes a parameter ({held}) x "
        f"{format_count(num_parameters)} = {format_gb(held_bytes)} before its gradients; "
        f"{limit_name} is {format_gb(limit_bytes)}"
    )
    yield line + (", too little for these settings" if held_bytes > limit_bytes else "")
    if settings.stage and plan.world_size == 1:
        yield f"ZeRO-{settings.stage} on 1 rank takes nothing off the model states: there is nobody to share them with"
    elif settings.stage:
        share = most_saved(settings, plan.world_size)
        if share > 0:
            yield (
                f"ZeRO-{settings.stage} on {plan.world_size} ranks can take at most {share:.1%} off the model states"
            )
    worst = plan.worst
    largest = sorted(worst.parts, key=lambda name: worst.parts[name], reverse=True)[:3]
    made_of = ", ".join(f"{name} {format_gb(worst.parts[name])}" for name in largest)
    yield f"the peak is in {worst.peak_phase}, and most of it is {made_of}"


def most_saved(settings: Settings, world_size: int) -> float:
    """The largest fraction of the model states (weights, gradients, master weights, moments) that the stage can take
    off one rank.

    What offload takes off in addition is not counted.
    """
    here = replace(settings, offload_optimizer="none", offload_param="none")
    without = replace(here, stage=0, master_dtype="fp32")
    whole = held_states(without, 1, with_gradients=True).per_parameter
    return 1 - held_states(here, world_size, with_gradients=True).per_parameter / whole
