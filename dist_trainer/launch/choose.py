"""Which launcher, and its plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dist_trainer.cluster.slurm import in_allocation
from dist_trainer.launch.deepspeed import plan_deepspeed
from dist_trainer.launch.hydra import plan_hydra
from dist_trainer.launch.mpirun import plan_mpirun
from dist_trainer.launch.plan import LaunchPlan, LaunchRequest
from dist_trainer.launch.srun import plan_srun
from dist_trainer.launch.torchrun import plan_torchrun

PLANNERS: Mapping[str, Callable[[LaunchRequest], LaunchPlan]] = {
    "torchrun": plan_torchrun,
    "deepspeed": plan_deepspeed,
    "mpirun": plan_mpirun,
    "srun": plan_srun,
}


def choose_launcher(environ: Mapping[str, str], hostfile: str | None) -> str:
    """The launcher when none is named: a hostfile asks for deepspeed, an allocation for srun, else torchrun."""
    if in_allocation(environ):
        return "srun"
    return "torchrun" if hostfile is None else "deepspeed"


def build_plan(launcher: str, request: LaunchRequest) -> LaunchPlan:
    if launcher == "mpirun" and request.facts.mpirun == "hydra":
        return plan_hydra(request)
    return PLANNERS[launcher](request)
