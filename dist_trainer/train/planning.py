"""Rank 0's plan of the run: made before the ranks rendezvous, printed and written once the run has a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psutil
import torch

from dist_trainer.cluster.rank import RankInfo
from dist_trainer.config.adapt import DeviceFacts
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.logs import quiet_deepspeed
from dist_trainer.memory.advice.nearest import Setup
from dist_trainer.memory.advice.outcome import HostMemory
from dist_trainer.memory.advice.preflight import Case, Preflight, preflight
from dist_trainer.memory.plan import Plan, read_plan
from dist_trainer.memory.planner.planner import PlannedDevice
from dist_trainer.train import process


def plan_first(
    request: Request, resolved: ResolvedRun, rank: RankInfo, facts: DeviceFacts, *, force: bool
) -> Preflight:
    """Plans for this rank's device. Raises UserError if the run would not fit it, unless `force`."""
    # The ranks are already started, so the advice must not ask for more ranks per host.
    setup = Setup(request, rank.world_size, rank.local_world_size, max_ranks_a_host=rank.local_world_size)
    host = HostMemory(psutil.virtual_memory().total, rank.local_world_size)
    case = Case(setup, facts, _device(rank, facts), host)
    with quiet_deepspeed():
        return preflight(case, force=force, resolved=resolved)


def keep(made: Preflight, run_dir: Path) -> list[str]:
    """Writes the plan into the run's folder; returns the lines to print, none if `launch` has printed the same plan."""
    if made.plan is None:
        return [f"notice     {notice}" for notice in made.notices]
    is_said = is_launched(run_dir) and _figures(_kept(run_dir)) == _figures(made.plan)
    made.write(run_dir)
    if is_said:
        return []
    return [f"memory     {made.line}", *(f"notice     {notice}" for notice in made.notices)]


def is_launched(run_dir: Path | None) -> bool:
    """Whether `launch` started the ranks: the folder that it names then has its launch.json."""
    return run_dir is not None and (run_dir / "resolved" / "launch.json").exists()


def _device(rank: RankInfo, facts: DeviceFacts) -> PlannedDevice:
    if facts.kind == "cpu":
        return PlannedDevice("cpu")
    properties = torch.cuda.get_device_properties(process.device_index(rank, facts))
    return PlannedDevice("cuda", properties.name, properties.total_memory)


def _kept(run_dir: Path) -> Plan | None:
    try:
        return read_plan(run_dir)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _figures(plan: Plan | None) -> Plan | None:
    """The plan without the device's name and size, which NVML and torch report differently."""
    return replace(plan, device_name=None, device_bytes=None) if plan is not None else None
