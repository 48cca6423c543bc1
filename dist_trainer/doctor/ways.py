"""How the questions reach the hosts, as command lines; and what so many connections take of this host."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from dist_trainer.cluster.topology import Topology, is_own_name
from dist_trainer.doctor.examination import Task
from dist_trainer.doctor.session import Route
from dist_trainer.errors import UserError
from dist_trainer.launch.hosts import ssh
from dist_trainer.launch.open_files import allow_open_files
from dist_trainer.units import counted

_MODULE = "dist_trainer.doctor.host"
_OF_EACH_TASK = ("SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND", "SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK")
# Three pipes a connection, and what this process has open besides.
_FILES_A_CONNECTION = 3
_OWN_FILES = 64


def routes(task: Task, environ: Mapping[str, str], hostname: str, *, open_files: int) -> list[Route]:
    """How the questions reach the hosts: one step over all nodes under SLURM, else a connection to each.

    `open_files`: the limit that holds for what a user starts on this host.
    """
    if task.how == "srun":
        return [Route(task.names, srun_command(task.topology, (task.interpreter, "-m", _MODULE), environ))]
    texts = {
        name: ssh.shell_text((task.interpreter, "-m", _MODULE, name), cwd=task.cwd, env=search_path(environ))
        for name in task.names
    }
    limit = "unlimited" if open_files == resource.RLIM_INFINITY else open_files
    texts |= {name: f"ulimit -Sn {limit}; {text}" for name, text in texts.items() if is_own_name(name, hostname)}
    logins = {host.name: host.login for host in task.topology.hosts}
    return [Route((name,), ssh.command_for(logins[name], text, hostname=hostname)) for name, text in texts.items()]


def search_path(environ: Mapping[str, str]) -> dict[str, str]:
    """The variable by which a checkout that is not installed is found, there as here."""
    return {"PYTHONPATH": environ["PYTHONPATH"]} if environ.get("PYTHONPATH") else {}


def srun_command(topology: Topology, argv: tuple[str, ...], environ: Mapping[str, str]) -> tuple[str, ...]:
    """One task a node, beside whatever runs there, with all that the job has on the node and every line of stdin."""
    count = len(topology.hosts)
    return (
        # What each task of the job gets is not for the one task here.
        *("env", *(word for name in _OF_EACH_TASK for word in ("-u", name))),
        *("srun", "--overlap", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"),
        f"--nodelist={','.join(host.name for host in topology.hosts)}",
        *("--cpu-bind=none", "--mem=0", *_all_gpus(topology, environ), "--input=all"),
        *argv,
    )


def _all_gpus(topology: Topology, environ: Mapping[str, str]) -> tuple[str, ...]:
    """In a job with --gpus-per-task a step has the GPUs of its own tasks alone, unless it asks for more."""
    a_task = environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]
    if not a_task.isdigit() or not topology.is_even:
        return ()
    return (f"--gpus-per-node={int(a_task) * topology.hosts[0].num_slots}",)


@contextmanager
def enough_files(num_connections: int) -> Iterator[int]:
    """So many connections may need more open files than are usual; yields the usual limit. Raises UserError."""
    needed = _OWN_FILES + _FILES_A_CONNECTION * num_connections

    def refusal(hard: int) -> UserError:
        return UserError(
            f"{counted(num_connections, 'connection')} need {needed} open files.",
            where="ulimit -Hn",
            found=hard,
            hint="raise the limit, or look at part of the hosts with --include",
        )

    soft = allow_open_files(needed, refusal)
    try:
        yield soft
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
