"""Which launcher, and its plan."""

from __future__ import annotations

from collections.abc import Mapping

from dist_trainer.cluster.slurm import in_allocation
from dist_trainer.launch.plan import LaunchPlan, LaunchRequest

LAUNCHERS = ("torchrun", "deepspeed", "mpirun", "srun")


def choose_launcher(environ: Mapping[str, str], hostfile: str | None) -> str:
    """The default launcher: with a hostfile deepspeed, in a SLURM allocation srun, else torchrun."""
    if in_allocation(environ):
        return "srun"
    return "torchrun" if hostfile is None else "deepspeed"


def build_plan(launcher: str, request: LaunchRequest) -> LaunchPlan:
    """The launcher's plan. Imports only that launcher's module, because importing delays the start."""
    if launcher == "torchrun":
        from dist_trainer.launch.launchers.torchrun import plan_torchrun

        return plan_torchrun(request)
    if launcher == "deepspeed":
        from dist_trainer.launch.launchers.deepspeed import plan_deepspeed

        return plan_deepspeed(request)
    if launcher == "srun":
        from dist_trainer.launch.launchers.srun import plan_srun

        return plan_srun(request)
    if request.facts.mpirun == "hydra":
        from dist_trainer.launch.launchers.hydra import plan_hydra

        return plan_hydra(request)
    from dist_trainer.launch.launchers.mpirun import plan_mpirun

    return plan_mpirun(request)
