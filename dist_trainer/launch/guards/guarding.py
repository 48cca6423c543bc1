"""From a launch request to the guards' job, and to the request that starts guards instead of ranks."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from dist_trainer.launch.environment import forwarded_env
from dist_trainer.launch.guards.job import Job
from dist_trainer.launch.guards.membership import Membership
from dist_trainer.launch.hosts.run_secret import RunSecret, public_id
from dist_trainer.launch.plan import GUARD_MODULE, LaunchPlan, LaunchRequest


def guarded(request: LaunchRequest, address: str, secret: RunSecret) -> LaunchRequest:
    """The same ranks, each started by its guard, which finds the launching process at `address` (HOST:PORT).

    Variables that the user set for every rank travel through the guards: a launcher may show them on a command line.
    """
    env = request.env if request.is_local else ()
    meeting = request.rendezvous
    return dataclasses.replace(
        request,
        module=GUARD_MODULE,
        arguments=(address, secret.source),
        env=env,
        is_guarded=True,
        rendezvous=meeting and dataclasses.replace(meeting, job_id=public_id(meeting.job_id)),
    )


def job_for(
    launcher: str, request: LaunchRequest, plan: LaunchPlan, run_dir: Path, *, is_port_fixed: bool, grace_s: float
) -> Job:
    """What each guard starts. Under torchrun its agents choose the rendezvous, under srun SLURM the local rank."""
    hosts = request.topology.hosts
    env = {} if request.is_local else forwarded_env(request)
    return Job(
        argv=(request.facts.interpreter, "-m", request.module, *request.arguments),
        cwd=str(Path.cwd()),
        env=tuple((env | dict(plan.env) | dict(request.env)).items()),
        master_addr=dict(plan.env).get("MASTER_ADDR") or ("127.0.0.1" if request.is_local else hosts[0].name),
        master_port=None if launcher == "torchrun" else request.master_port,
        is_port_fixed=is_port_fixed,
        logs_dir=str(run_dir / "logs"),
        is_local=request.is_local,
        grace_s=grace_s,
        has_terminal=os.isatty(1),
        peers=_peers(request),
        local_ranks=()
        if launcher == "srun" or request.rendezvous
        else tuple((local_rank, host.num_slots) for host in hosts for local_rank in range(host.num_slots)),
        host_env=()
        if launcher == "deepspeed" or request.is_local or request.rendezvous
        else tuple(
            (host.name, (("CUDA_VISIBLE_DEVICES", ",".join(map(str, host.slots))),))
            for host in hosts
            if not host.has_first_slots
        ),
    )


def membership_for(launcher: str, request: LaunchRequest) -> Membership:
    """Which rank is expected on which host. Under srun with uneven hosts only SLURM knows, so none is expected."""
    topology = request.topology
    if request.rendezvous or (launcher == "srun" and not topology.is_even):
        return Membership(request.num_ranks)
    return Membership(topology.num_ranks, tuple(host.name for host in topology.hosts for _ in host.slots))


def _peers(request: LaunchRequest) -> tuple[str, ...]:
    """Two of the run's hosts, or the one that is known: a rank looks up its route to one that is not its own host."""
    if request.rendezvous:
        return (request.rendezvous.host,)
    return tuple(host.name for host in request.topology.hosts[:2]) if len(request.topology.hosts) > 1 else ()
