"""The commands that start respondents on the hosts, and the open files that so many connections need here."""

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
# Three pipes per connection, and what else this process has open.
_FILES_A_CONNECTION = 3
_OWN_FILES = 64


def routes(task: Task, environ: Mapping[str, str], hostname: str, *, open_files: int) -> list[Route]:
    """The routes to the hosts: under SLURM one step over all nodes, else one connection per host.

    `open_files`: the limit with which commands on this host are started.
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
    """PYTHONPATH, if set: the other hosts find a checkout that is not installed the same way."""
    return {"PYTHONPATH": environ["PYTHONPATH"]} if environ.get("PYTHONPATH") else {}


def srun_command(topology: Topology, argv: tuple[str, ...], environ: Mapping[str, str]) -> tuple[str, ...]:
    """One task per node beside the job's other steps, with all that the job has on the node; stdin goes to all."""
    count = len(topology.hosts)
    return (
        # Settings for each of the job's tasks would limit the single task here.
        *("env", *(word for name in _OF_EACH_TASK for word in ("-u", name))),
        *("srun", "--overlap", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"),
        f"--nodelist={','.join(host.name for host in topology.hosts)}",
        *("--cpu-bind=none", "--mem=0", *_all_gpus(topology, environ), "--input=all"),
        *argv,
    )


def _all_gpus(topology: Topology, environ: Mapping[str, str]) -> tuple[str, ...]:
    """In a job with --gpus-per-task a step gets only the GPUs for its own number of tasks, unless it asks for more."""
    a_task = environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]
    if not a_task.isdigit() or not topology.is_even:
        return ()
    return (f"--gpus-per-node={int(a_task) * topology.hosts[0].num_slots}",)


@contextmanager
def enough_files(num_connections: int) -> Iterator[int]:
    """Raises the limit of open files for so many connections; yields the old limit. Raises UserError if it cannot."""
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
