"""A plan: the bytes each rank will need, as data. `resolved/plan.json` in a run's folder holds one."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PLAN_FILE = "plan.json"

PhaseName = Literal["init", "forward", "backward", "step"]


@dataclass(frozen=True)
class Figure:
    """A predicted number of bytes, and the band in which the measured one is expected."""

    num_bytes: int
    low_bytes: int
    high_bytes: int


@dataclass(frozen=True)
class PhasePlan:
    """The peak within one phase and what it is made of then: part -> bytes, which add up to `allocated_bytes`."""

    phase: PhaseName
    allocated_bytes: int
    parts: dict[str, int]


@dataclass(frozen=True)
class RankPlan:
    """One rank. `device_used` is what NVML will show (None on a CPU); `parts` make up `device_used`, or else
    `reserved`, at the peak, allocator slack and context included. `host_bytes` is what offload keeps in host memory.
    """

    rank: int
    allocated: Figure
    reserved: Figure
    device_used: Figure | None
    peak_phase: PhaseName
    parts: dict[str, int]
    phases: tuple[PhasePlan, ...]
    host_bytes: int


@dataclass(frozen=True)
class Plan:
    """What was planned and under which assumptions. `ranks` holds the ranks that differ (the first, the last)."""

    name: str
    deepspeed: str
    device: Literal["cpu", "cuda"]
    device_name: str | None
    device_bytes: int | None
    target_bytes: int | None
    baseline_bytes: int | None
    world_size: int
    micro_batch: int
    accumulation: int
    sequence_length: int
    ranks: tuple[RankPlan, ...]
    assumptions: tuple[str, ...]
    unmodelled: tuple[str, ...]
    upper_bounds: tuple[str, ...]

    @property
    def worst(self) -> RankPlan:
        """The rank that needs most."""
        return max(self.ranks, key=lambda rank: needed(rank).num_bytes)

    def of(self, rank: int) -> RankPlan:
        """The plan for this rank, or the worst where it has none of its own."""
        return next((plan for plan in self.ranks if plan.rank == rank), self.worst)


def needed(rank: RankPlan) -> Figure:
    """What the device has to have: NVML's figure on a GPU, the allocated bytes on a CPU."""
    return rank.device_used or rank.allocated


def write_plan(plan: Plan, run_dir: Path) -> None:
    path = run_dir / "resolved" / PLAN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_plan(plan), encoding="utf-8")


def dump_plan(plan: Plan) -> str:
    return json.dumps(dataclasses.asdict(plan), indent=2) + "\n"


def read_plan(run_dir: Path) -> Plan | None:
    """The plan in a run's folder; None where there is none."""
    path = run_dir / "resolved" / PLAN_FILE
    if not path.exists():
        return None
    return _plan(json.loads(path.read_text(encoding="utf-8")))


def _plan(values: dict[str, Any]) -> Plan:
    ranks = tuple(
        RankPlan(
            **{
                **rank,
                "allocated": Figure(**rank["allocated"]),
                "reserved": Figure(**rank["reserved"]),
                "device_used": Figure(**rank["device_used"]) if rank["device_used"] else None,
                "phases": tuple(PhasePlan(**phase) for phase in rank["phases"]),
            }
        )
        for rank in values["ranks"]
    )
    lists = {name: tuple(values[name]) for name in ("assumptions", "unmodelled", "upper_bounds")}
    return Plan(**{**values, **lists, "ranks": ranks})
