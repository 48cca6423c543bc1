"""A plan: the bytes that each rank will need, as data; saved as `resolved/plan.json` in a run's folder.

A run on a CPU that has a target also gets `plan-gpu.json`: the plan of the same run on GPUs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

from dist_trainer import typed_json
from dist_trainer.config.deepspeed.resolve import Filled
from dist_trainer.disk import write_text
from dist_trainer.encoding import all_as_utf8
from dist_trainer.typed_json import Count

PLAN_FILE = "plan.json"
PLAN_ON_GPU_FILE = "plan-gpu.json"

PhaseName = Literal["init", "forward", "backward", "step"]


@dataclass(frozen=True)
class Figure:
    """A predicted number of bytes, with the band in which the measured figure is expected."""

    num_bytes: Count
    low_bytes: Count
    high_bytes: Count


@dataclass(frozen=True)
class PhasePlan:
    """The peak within one phase, and its composition at that moment: part -> bytes; they sum to `allocated_bytes`."""

    phase: PhaseName
    allocated_bytes: Count
    parts: dict[str, Count]


@dataclass(frozen=True)
class RankPlan:
    """One rank. `device_used`: what NVML will show, None on a CPU. `parts` sum to `device_used`, or on a CPU to
    `reserved`, at the peak, including allocator slack and context. `host_bytes`: what offload and the copy for
    checkpoints keep in host memory.
    """

    rank: Count
    allocated: Figure
    reserved: Figure
    device_used: Figure | None
    peak_phase: PhaseName
    parts: dict[str, Count]
    phases: tuple[PhasePlan, ...]
    host_bytes: Count


@dataclass(frozen=True)
class Plan:
    """What was planned, and under which assumptions. `ranks`: one plan for each kind of rank (the first, the last)."""

    name: str
    deepspeed: str
    device: Literal["cpu", "cuda"]
    device_name: str | None
    device_bytes: Count | None
    target_bytes: Count | None
    baseline_bytes: Count | None
    world_size: Annotated[Count, Ge(1)]
    micro_batch: Count
    accumulation: Count
    sequence_length: Count
    ranks: Annotated[tuple[RankPlan, ...], MinLen(1)]
    assumptions: tuple[str, ...]
    unmodelled: tuple[str, ...]
    upper_bounds: tuple[str, ...]

    @property
    def worst(self) -> RankPlan:
        """The rank that needs most."""
        return max(self.ranks, key=lambda rank: needed(rank).num_bytes)

    def of(self, rank: int) -> RankPlan:
        """The plan for this rank, or the worst one if this rank has none of its own."""
        return next((plan for plan in self.ranks if plan.rank == rank), self.worst)


def needed(rank: RankPlan) -> Figure:
    """What the device must have: on a GPU NVML's figure, on a CPU the allocated bytes."""
    return rank.device_used or rank.allocated


def write_plan(plan: Plan, run_dir: Path, name: str = PLAN_FILE) -> None:
    """Writes RUN_DIR/resolved/NAME. Raises disk.WriteError."""
    write_text(run_dir / "resolved" / name, dump_plan(plan))


def dump_plan(plan: Plan, **beside: Sequence[Filled] | Sequence[str]) -> str:
    """The plan as JSON, with further keys from `beside`: lists of lines, or of what was filled in for "auto"."""
    told = {
        name: [dataclasses.asdict(one) if isinstance(one, Filled) else one for one in entries]
        for name, entries in beside.items()
    }
    return json.dumps(all_as_utf8(dataclasses.asdict(plan) | told), indent=2) + "\n"


def read_plan(run_dir: Path) -> Plan | None:
    """The plan in a run's folder; None if there is none. Raises typed_json.DamagedError for a damaged one."""
    path = run_dir / "resolved" / PLAN_FILE
    return typed_json.read(path, Plan) if path.exists() else None
