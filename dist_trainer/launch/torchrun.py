"""torchrun on one host, by way of `dist_trainer.launch.elastic`, which passes the exit status on."""

from __future__ import annotations

from dist_trainer.launch.environment import common_env, refuse_other_hosts, visible_gpus_env
from dist_trainer.launch.plan import LaunchPlan, LaunchRequest, argument_groups


def plan_torchrun(request: LaunchRequest) -> LaunchPlan:
    """Raises UserError when the topology names another host."""
    refuse_other_hosts(request, "torchrun")
    num_ranks = request.topology.num_ranks
    return LaunchPlan(
        launcher="torchrun",
        command=(
            (request.facts.interpreter, "-m", "dist_trainer.launch.elastic"),
            ("--nnodes=1", f"--nproc-per-node={num_ranks}"),
            ("--master-addr=127.0.0.1", f"--master-port={request.master_port}"),
            # torchrun's parser takes the start of an option's name for the option, wherever it stands: after '--'
            # it no longer looks.
            ("-m", "--", request.module, *request.arguments[:1]),
            *argument_groups(request.arguments[1:]),
        ),
        env=common_env(request) + visible_gpus_env(request),
        num_ranks=num_ranks,
    )
