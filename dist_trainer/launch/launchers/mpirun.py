"""Open MPI's mpirun. Ranks do not initialise MPI: they read their rank from the variables that mpirun sets.

The other mpirun, Hydra, has different switches: see `hydra.py`.
"""

from __future__ import annotations

from dist_trainer.launch.environment import (
    SEARCH_PATHS,
    mpi_env,
    refuse_left_out_slots,
    refuse_stray_rank,
    refuse_users,
)
from dist_trainer.launch.plan import LaunchPlan, LaunchRequest, argument_groups

_AS_ROOT = (("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"))


def plan_mpirun(request: LaunchRequest) -> LaunchPlan:
    """Raises UserError if RANK is set in the environment, for slots left out on another host, and for users."""
    refuse_stray_rank(request.facts.environ, whose="that mpirun starts", again="launch")
    env = mpi_env(request)
    exported = [name for name, _ in env]
    if not request.is_local:
        refuse_users(request)
        if not request.is_guarded:
            refuse_left_out_slots(request)
        exported += [name for name in SEARCH_PATHS if request.facts.environ.get(name)]
    return LaunchPlan(
        launcher="mpirun",
        command=(
            ("mpirun", *_quiet(request), "-n", str(request.topology.num_ranks)),
            _where(request),
            ("--bind-to", "none"),
            tuple(word for name in exported for word in ("-x", name)),
            (request.facts.interpreter, "-m", request.module, *request.arguments[:1]),
            *argument_groups(request.arguments[1:]),
        ),
        env=env + (_AS_ROOT if request.facts.is_root else ()),
        num_ranks=request.topology.num_ranks,
    )


def _quiet(request: LaunchRequest) -> tuple[str, ...]:
    """Silences mpirun, because guards report what happens to ranks. Over hosts its own errors go to a file."""
    return () if request.is_guarded and not request.is_local else ("--quiet",)


def _where(request: LaunchRequest) -> tuple[str, ...]:
    if request.is_local:
        # Open MPI counts physical cores as slots, and refuses more ranks; their number was decided before.
        return ("--oversubscribe",)
    return ("--host", ",".join(f"{host.name}:{host.num_slots}" for host in request.topology.hosts))
