"""torchrun, through `dist_trainer.launch.launchers.elastic`, which returns the failed rank's exit status.

On this host alone; on several hosts, on each of which it is started by hand (a rendezvous); or on several hosts over
ssh, one agent per host.
"""

from __future__ import annotations

from dist_trainer.launch.environment import common_env, visible_gpus_env
from dist_trainer.launch.launchers.over_ssh import NODE_RANK, NUM_SLOTS
from dist_trainer.launch.plan import LaunchPlan, LaunchRequest, argument_groups


def plan_torchrun(request: LaunchRequest) -> LaunchPlan:
    """Raises UserError for a slot without a GPU on this host."""
    interpreter, topology = request.facts.interpreter, request.topology
    env = common_env(request)
    over_ssh: tuple[tuple[str, ...], ...] = ()
    if request.rendezvous is not None:
        meeting = request.rendezvous
        where: tuple[tuple[str, ...], ...] = (
            (f"--nnodes={meeting.num_hosts}", f"--nproc-per-node={topology.num_ranks}"),
            ("--rdzv-backend=c10d", f"--rdzv-endpoint={meeting.endpoint}", f"--rdzv-id={meeting.job_id}"),
        )
        env += visible_gpus_env(request)
    elif request.is_local:
        where = (
            ("--nnodes=1", f"--nproc-per-node={topology.num_ranks}"),
            ("--master-addr=127.0.0.1", f"--master-port={request.master_port}"),
        )
        env += visible_gpus_env(request)
    else:
        hosts = tuple(f"{host.login}:{host.num_slots}" for host in topology.hosts)
        over_ssh = ((interpreter, "-m", "dist_trainer.launch.launchers.over_ssh", *hosts, "--"),)
        where = (
            (f"--nnodes={len(hosts)}", f"--node-rank={NODE_RANK}", f"--nproc-per-node={NUM_SLOTS}"),
            (f"--master-addr={topology.hosts[0].name}", f"--master-port={request.master_port}"),
        )
    return LaunchPlan(
        launcher="torchrun",
        command=(
            *over_ssh,
            (interpreter, "-m", "dist_trainer.launch.launchers.elastic"),
            *where,
            # torchrun's parser accepts abbreviated options anywhere in the command line up to a '--'.
            ("-m", "--", request.module, *request.arguments[:1]),
            *argument_groups(request.arguments[1:]),
        ),
        env=env,
        num_ranks=request.num_ranks,
    )
