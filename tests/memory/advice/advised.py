"""Settings and plans of `large`, about which advice is given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve
from dist_trainer.memory.engines.settings import Settings, read_settings
from dist_trainer.memory.plan import Figure, PhasePlan, Plan, RankPlan
from dist_trainer.units import GB


def settings_of(ds: str, world_size: int = 2, *settings: str) -> Settings:
    resolved = resolve(Request("large", ds, settings=settings), world_size=world_size, device=ANY_DEVICE)
    return read_settings(resolved.deepspeed, cuda=True)


def a_plan(needed_bytes: int, **changes: Any) -> Plan:
    figure = Figure(needed_bytes, needed_bytes - GB // 2, needed_bytes + GB // 2)
    parts = {"parameters": needed_bytes - 1000, "activations": 1000}
    phase = PhasePlan("step", needed_bytes, parts)
    rank = RankPlan(0, figure, figure, figure, "step", parts, (phase,), host_bytes=0)
    plan = Plan(
        name="large",
        deepspeed="zero1.json",
        device="cuda",
        device_name=None,
        device_bytes=40 * GB,
        target_bytes=10 * GB,
        baseline_bytes=16 * GB,
        world_size=2,
        micro_batch=1,
        accumulation=8,
        sequence_length=1024,
        ranks=(rank,),
        assumptions=(),
        unmodelled=(),
        upper_bounds=(),
    )
    return replace(plan, **changes)
