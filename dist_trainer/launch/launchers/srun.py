"""srun inside a SLURM allocation: one task per rank."""

from __future__ import annotations

from dist_trainer.cluster.rank import port_from
from dist_trainer.cluster.slurm import cpus_per_rank
from dist_trainer.launch.environment import kept_env, refuse_stray_rank
from dist_trainer.launch.plan import LaunchPlan, LaunchRequest, argument_groups


def plan_srun(request: LaunchRequest) -> LaunchPlan:
    """The topology has to be the allocation's. Raises UserError if RANK is set in the environment."""
    refuse_stray_rank(request.facts.environ, whose="that srun starts", again="launch")
    environ = request.facts.environ
    topology = request.topology
    counts: tuple[str, ...] = (f"--nodes={len(topology.hosts)}", f"--ntasks={topology.num_ranks}")
    if topology.is_even:
        counts += (f"--ntasks-per-node={topology.hosts[0].num_slots}",)
    if environ.get("SLURM_CPUS_PER_TASK"):
        # Since SLURM 22.05 srun does not inherit this from the allocation.
        counts += (f"--cpus-per-task={environ['SLURM_CPUS_PER_TASK']}",)
    return LaunchPlan(
        launcher="srun",
        command=(
            ("srun", *counts),
            ("--kill-on-bad-exit=1",),
            (request.facts.interpreter, "-m", request.module, *request.arguments[:1]),
            *argument_groups(request.arguments[1:]),
        ),
        env=(
            # Not CUDA_VISIBLE_DEVICES: the GPUs that a shell in the allocation sees are not those of a step.
            *kept_env(request, cpus_per_rank(environ, topology)),
            ("MASTER_ADDR", topology.hosts[0].name if len(topology.hosts) > 1 else "127.0.0.1"),
            ("MASTER_PORT", str(port_from(environ["SLURM_JOB_ID"]))),
        ),
        num_ranks=topology.num_ranks,
    )
