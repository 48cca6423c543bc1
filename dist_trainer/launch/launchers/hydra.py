"""Hydra, the mpirun of MPICH and of Intel MPI. Ranks do not initialise MPI: they read their rank from its variables.

Hydra does not end the other ranks when one exits with an error, ORs the exit statuses, and waits for ranks that survive
SIGTERM; the ranks' guards take care of all that. As with Open MPI, variables for other hosts are passed on by name.
"""

from __future__ import annotations

from dist_trainer.errors import UserError
from dist_trainer.launch.environment import (
    SEARCH_PATHS,
    UNSAYABLE,
    mpi_env,
    refuse_left_out_slots,
    refuse_stray_rank,
    refuse_users,
)
from dist_trainer.launch.plan import LaunchPlan, LaunchRequest, argument_groups

# Intel MPI binds each rank to cores by default, MPICH does not.
_UNBOUND = (("I_MPI_PIN", "0"),)


def plan_hydra(request: LaunchRequest) -> LaunchPlan:
    """Raises UserError if RANK is set in the environment, for users before hosts, for slots left out on another host,
    and for an argument ':', which Hydra would interpret.
    """
    refuse_stray_rank(request.facts.environ, whose="that mpirun starts", again="launch")
    topology = request.topology
    env = mpi_env(request) + _UNBOUND
    if not request.is_local:
        refuse_users(request)
    if not request.is_guarded:
        _refuse_what_hydra_breaks(request)
    exported = [name for name, _ in env]
    exported += [name for name in SEARCH_PATHS if request.facts.environ.get(name)]
    return LaunchPlan(
        launcher="mpirun",
        command=(
            ("mpirun", "-n", str(topology.num_ranks)),
            _where(request),
            ("-genvlist", ",".join(exported)),
            (request.facts.interpreter, "-m", request.module, *request.arguments[:1]),
            *argument_groups(request.arguments[1:]),
        ),
        env=env,
        num_ranks=topology.num_ranks,
    )


def _where(request: LaunchRequest) -> tuple[str, ...]:
    """The hosts are always named: without them Hydra would use all hosts of a SLURM allocation around it."""
    hosts = request.topology.hosts
    if request.is_local:
        return ("-hosts", "localhost")
    if request.topology.is_even:
        return ("-hosts", ",".join(host.name for host in hosts), "-ppn", str(hosts[0].num_slots))
    return ("-hosts", ",".join(f"{host.name}:{host.num_slots}" for host in hosts))


def _refuse_what_hydra_breaks(request: LaunchRequest) -> None:
    if ":" in request.arguments:
        raise UserError(
            "An argument ':' would begin another program for mpirun.",
            where="the command line",
            found=":",
            hint=UNSAYABLE + "write it into the run file or the DeepSpeed JSON, or use --launcher torchrun",
        )
    if not request.is_local:
        refuse_left_out_slots(request)
