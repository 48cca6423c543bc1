"""The variables by which each kind of launcher tells a process its rank, each read by one small function.

A reader returns None if its launcher's variables are not set, and raises UserError if they are set but contradict each
other. No reader writes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dist_trainer.cluster.nodelist import expand_nodelist, expand_tasks_per_node
from dist_trainer.errors import UserError
from dist_trainer.units import counted, whole_number

Environ = Mapping[str, str]

# Set by `launch` for its ranks, so that they know their launch; it is the launch's id in the folder lock.
LAUNCH_ID = "DIST_TRAINER_LAUNCH_ID"
# Set by `launch` for its ranks: its own process, as "PID:TICKS" (see `process_table.started_ticks`).
LAUNCH_PROCESS = "DIST_TRAINER_LAUNCH_PROCESS"

_PLACE = "the environment"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Step ids from here on are SLURM's special ones: the batch script, an interactive shell, the external step.
_FIRST_SPECIAL_STEP_ID = 0xFFFFFFF0

_MPI_LAUNCHER_VARIABLES = ("PMIX_NAMESPACE", "PMIX_RANK", "PMI_FD", "PMI_PORT", "PMI_RANK", "HYDI_CONTROL_FD")


@dataclass(frozen=True)
class Place:
    """The rank of one process as its launcher says it. `first_host` and `job_id`, the same on all ranks, are None if no
    variable says them.
    """

    source: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    first_host: str | None = None
    job_id: str | None = None


def read_torch(environ: Environ) -> Place | None:
    """torchrun and deepspeed: RANK, WORLD_SIZE, LOCAL_RANK, and LOCAL_WORLD_SIZE or DeepSpeed's LOCAL_SIZE."""
    rank = read_count(environ, "RANK")
    if rank is None:
        return None
    world_size = _need(environ, "WORLD_SIZE", because="RANK is set")
    # Ranks started by hand have no LOCAL_RANK: if the rendezvous is on this host's loopback, all ranks are here.
    is_one_host = world_size == 1 or environ.get("MASTER_ADDR") in _LOOPBACK
    local_rank = read_count(environ, "LOCAL_RANK")
    local_world_size = read_count(environ, "LOCAL_WORLD_SIZE")
    if local_world_size is None:
        local_world_size = read_count(environ, "LOCAL_SIZE")
    if is_one_host:
        local_rank = rank if local_rank is None else local_rank
        local_world_size = world_size if local_world_size is None else local_world_size
    if local_rank is None:
        local_rank = _need(environ, "LOCAL_RANK", because="RANK is set")
    if local_world_size is None:
        local_world_size = _need(environ, "LOCAL_WORLD_SIZE", because="RANK is set")
    return Place("torch", rank, world_size, local_rank, local_world_size)


def read_openmpi(environ: Environ) -> Place | None:
    """Open MPI's mpirun: OMPI_COMM_WORLD_*."""
    rank = read_count(environ, "OMPI_COMM_WORLD_RANK")
    if rank is None:
        return None
    because = "OMPI_COMM_WORLD_RANK is set"
    return Place(
        "openmpi",
        rank,
        _need(environ, "OMPI_COMM_WORLD_SIZE", because=because),
        _need(environ, "OMPI_COMM_WORLD_LOCAL_RANK", because=because),
        _need(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", because=because),
        job_id=environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid"),
    )


def read_pmi(environ: Environ) -> Place | None:
    """MPICH, Hydra and Intel MPI: PMI_RANK and PMI_SIZE, with MPI_LOCALRANKID and MPI_LOCALNRANKS.

    SLURM's PMI plugins set PMI_RANK without the two local variables; `read_slurm` reads those processes.
    """
    rank, local_rank = read_count(environ, "PMI_RANK"), read_count(environ, "MPI_LOCALRANKID")
    if rank is None or local_rank is None:
        return None
    return Place(
        "pmi",
        rank,
        _need(environ, "PMI_SIZE", because="PMI_RANK is set"),
        local_rank,
        _need(environ, "MPI_LOCALNRANKS", because="MPI_LOCALRANKID is set"),
        job_id=environ.get("PMI_JOBID"),
    )


def read_slurm(environ: Environ) -> Place | None:
    """A task of a step that srun started.

    A batch script and a salloc shell have SLURM_JOB_ID as well, and the script even SLURM_PROCID=0, but they are not
    ranks: only a step has an ordinary SLURM_STEP_ID.
    """
    step_id = read_count(environ, "SLURM_STEP_ID")
    if step_id is None or step_id >= _FIRST_SPECIAL_STEP_ID or not environ.get("SLURM_PROCID"):
        return None
    because = "SLURM_STEP_ID is set"
    rank = _need(environ, "SLURM_PROCID", because=because)
    world_size = read_count(environ, "SLURM_STEP_NUM_TASKS")
    if world_size is None:
        world_size = _need(environ, "SLURM_NTASKS", because=because)
    tasks_variable = first_set(environ, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    nodes_variable = first_set(environ, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
    if tasks_variable is None:
        raise _missing("SLURM_STEP_TASKS_PER_NODE", because)
    tasks_per_node = expand_tasks_per_node(environ[tasks_variable], where=tasks_variable)
    node_id = _need(environ, "SLURM_NODEID", because=because)
    if node_id >= len(tasks_per_node):
        raise UserError(
            f"SLURM_NODEID is {node_id}, but there are tasks on {counted(len(tasks_per_node), 'node')}.",
            where=_PLACE,
            key=tasks_variable,
            found=environ[tasks_variable],
        )
    return Place(
        "slurm",
        rank,
        world_size,
        _need(environ, "SLURM_LOCALID", because=because),
        tasks_per_node[node_id],
        first_host=expand_nodelist(environ[nodes_variable], where=nodes_variable)[0] if nodes_variable else None,
        job_id=f"{environ.get('SLURM_JOB_ID', '')}.{step_id}",
    )


READERS: tuple[Callable[[Environ], Place | None], ...] = (read_torch, read_openmpi, read_pmi, read_slurm)


def mpi_launcher_variable(environ: Environ) -> str | None:
    """The name of a set variable that only MPI launchers set; None if there is none."""
    return first_set(environ, *_MPI_LAUNCHER_VARIABLES)


def first_set(environ: Environ, *names: str) -> str | None:
    """The first of these names whose variable is set and not empty."""
    return next((name for name in names if environ.get(name)), None)


def read_count(environ: Environ, name: str) -> int | None:
    """The variable as a whole number from 0 up; None if it is unset or empty. Raises UserError for anything else."""
    text = environ.get(name)
    if not text:
        return None
    count = whole_number(text)
    if count is None:
        raise UserError(
            f"{name} is not a whole number.", where=_PLACE, key=name, found=text, expected="a whole number from 0 up"
        )
    return count


def _need(environ: Environ, name: str, *, because: str) -> int:
    count = read_count(environ, name)
    if count is None:
        raise _missing(name, because)
    return count


def _missing(name: str, because: str) -> UserError:
    return UserError(
        f"{because}, but {name} is not.",
        where=_PLACE,
        key=name,
        expected="a whole number from 0 up",
        hint="set it for every rank, or start the ranks with ./launch.sh",
    )
