"""The hosts and tasks of the SLURM allocation around this process. Pure functions of the environment."""

from __future__ import annotations

from dist_trainer.cluster.environments import Environ, first_set, read_count
from dist_trainer.cluster.nodelist import expand_nodelist, expand_tasks_per_node
from dist_trainer.cluster.topology import Host, Topology
from dist_trainer.errors import UserError
from dist_trainer.units import counted

# The key of an event's facts that says which start of which SLURM job wrote the event.
SLURM_START = "slurm"
_MAX_NUM_DIGITS = 20
# SLURM sends SIGTERM at the time limit, and the clocks of hosts differ a little.
_CLOCKS_DIFFER_S = 5.0


def in_allocation(environ: Environ) -> bool:
    return bool(environ.get("SLURM_JOB_ID"))


def slurm_facts(environ: Environ) -> dict[str, object]:
    """The facts by which an event says which start of which job wrote it, in SLURM's own counting; empty outside SLURM.
    A task of a job array is named by its number in the array.
    """
    job_id = environ.get("SLURM_JOB_ID")
    if not job_id:
        return {}
    array_id, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    restarts = environ.get("SLURM_RESTART_COUNT", "")
    return {
        SLURM_START: {
            "job_id": f"{array_id}_{task}" if array_id and task else job_id,
            "restarts": int(restarts) if restarts.isdecimal() else 0,
        }
    }


def is_at_time_limit(environ: Environ, now_s: float) -> bool:
    """Whether the job's time limit has passed or is about to, by this host's clock. Decides nothing but words."""
    end_s = environ.get("SLURM_JOB_END_TIME", "")
    return (
        end_s.isascii() and end_s.isdecimal() and len(end_s) < _MAX_NUM_DIGITS and now_s > int(end_s) - _CLOCKS_DIFFER_S
    )


def allocated_topology(environ: Environ, num_ranks_per_host: int | None = None) -> Topology:
    """The nodes of the allocation with `num_ranks_per_host` slots each, or by default one slot per SLURM task.

    If the allocation does not say how many tasks, a node has one slot per GPU. Raises UserError outside an allocation,
    and if a node has fewer CPUs than ranks.
    """
    variable = first_set(environ, "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    if not in_allocation(environ) or variable is None:
        raise UserError(
            "srun starts ranks only inside a SLURM allocation, and this is none.",
            where="the environment",
            key="SLURM_JOB_ID",
            hint="submit the run: python -m dist_trainer slurm submit --nodes 1 --gpus-per-node N ...",
        )
    names = expand_nodelist(environ[variable], where=variable)
    counts = _ranks_per_node(environ, len(names)) if num_ranks_per_host is None else (num_ranks_per_host,) * len(names)
    if len(counts) != len(names):
        raise UserError(
            f"SLURM names {counted(len(names), 'node')}, but tasks for {len(counts)}.",
            where="the environment",
            key="SLURM_TASKS_PER_NODE",
            found=environ.get("SLURM_TASKS_PER_NODE"),
        )
    _check_cpus(environ, names, counts)
    return Topology(tuple(Host(name, tuple(range(count))) for name, count in zip(names, counts, strict=True)))


def cpus_per_rank(environ: Environ, topology: Topology) -> int | None:
    """The CPUs of each rank in the allocation: as requested, else an equal share; None if SLURM does not say."""
    asked = read_count(environ, "SLURM_CPUS_PER_TASK")
    if asked:
        return asked
    per_node = _cpus_per_node(environ)
    if per_node is None or len(per_node) != len(topology.hosts):
        return None
    return max(1, min(cpus // host.num_slots for cpus, host in zip(per_node, topology.hosts, strict=True)))


def _ranks_per_node(environ: Environ, num_nodes: int) -> tuple[int, ...]:
    num_gpus = read_count(environ, "SLURM_GPUS_ON_NODE")
    if first_set(environ, "SLURM_NTASKS") is None and num_gpus:
        return (num_gpus,) * num_nodes
    tasks = environ.get("SLURM_TASKS_PER_NODE")
    return expand_tasks_per_node(tasks) if tasks else (1,) * num_nodes


def _cpus_per_node(environ: Environ) -> tuple[int, ...] | None:
    text = environ.get("SLURM_JOB_CPUS_PER_NODE")
    return expand_tasks_per_node(text, where="SLURM_JOB_CPUS_PER_NODE") if text else None


def _check_cpus(environ: Environ, names: tuple[str, ...], counts: tuple[int, ...]) -> None:
    per_node = _cpus_per_node(environ)
    cpus_per_task = read_count(environ, "SLURM_CPUS_PER_TASK") or 1
    if per_node is None or len(per_node) != len(names):
        return
    for name, count, num_cpus in zip(names, counts, per_node, strict=True):
        if count * cpus_per_task > num_cpus:
            raise UserError(
                f"{count} ranks with {cpus_per_task} CPUs each need more than the allocation has on {name}.",
                where="--nproc-per-node",
                found=count,
                expected=f"at most {num_cpus // cpus_per_task}",
                hint="ask for fewer ranks, or for an allocation with more tasks",
            )
