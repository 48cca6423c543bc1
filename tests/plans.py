"""Plans for tests, made up from a few figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from dist_trainer.memory.plan import Figure, PhasePlan, Plan, RankPlan

PARTS = {
    "parameters": 0.25,
    "optimizer states": 0.30,
    "gradients": 0.15,
    "activations": 0.12,
    "logits and loss": 0.08,
    "allocator slack": 0.04,
    "context": 0.06,
}


def figure(num_bytes: int, band: float = 0.05) -> Figure:
    return Figure(num_bytes, round(num_bytes * (1 - band)), round(num_bytes * (1 + band)))


def make_plan(
    *,
    allocated: int,
    reserved: int | None = None,
    used: int | None = None,
    device: Literal["cpu", "cuda"] = "cuda",
    phases: Mapping[str, int] | None = None,
    parts: Mapping[str, float] = PARTS,
    world_size: int = 2,
    **others: Any,
) -> Plan:
    """The same plan for every rank. `parts` are fractions of the whole."""
    whole = (used or reserved or allocated) if device == "cuda" else allocated
    rank = RankPlan(
        rank=0,
        allocated=figure(allocated),
        reserved=figure(reserved or allocated),
        device_used=figure(used or reserved or allocated) if device == "cuda" else None,
        peak_phase="backward",
        parts={name: round(fraction * whole) for name, fraction in parts.items()},
        phases=tuple(
            PhasePlan(name, num_bytes, {"parameters": num_bytes})  # type: ignore[arg-type]
            for name, num_bytes in (phases or {"backward": allocated}).items()
        ),
        host_bytes=0,
    )
    fields: dict[str, Any] = {
        "name": "tiny",
        "deepspeed": "zero2.json",
        "device": device,
        "device_name": "NVIDIA Stand-in" if device == "cuda" else None,
        "device_bytes": 24 * 2**30 if device == "cuda" else None,
        "target_bytes": 2_500_000_000,
        "baseline_bytes": 4_000_000_000,
        "world_size": world_size,
        "micro_batch": 1,
        "accumulation": 8,
        "sequence_length": 1024,
        "ranks": (rank,),
        "assumptions": ("CUDA context: 0.47 GB (0.29 GB to 0.90 GB)",),
        "unmodelled": (),
        "upper_bounds": (),
    }
    return Plan(**{**fields, **others})
