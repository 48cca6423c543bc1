"""Whether ranks could start on the other hosts of a run, asked over ssh before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dist_trainer.cluster.topology import Host
from dist_trainer.errors import UserError
from dist_trainer.launch.job import forwarded_env
from dist_trainer.launch.plan import LaunchRequest
from dist_trainer.launch.remote import RemoteResult, run_on_hosts

_LIMIT_S = 60.0
_NUM_NAMED = 8


def check_hosts(request: LaunchRequest) -> tuple[str, ...]:
    """Asks all hosts at once, each for its GPUs, with the Python and in the folder that the ranks will have; returns
    what a person should know.

    Raises UserError naming the hosts that do not answer, that lack the Python or the folder, or have too few GPUs.
    """
    argv = [request.facts.interpreter, "-m", "dist_trainer.launch.facts"]
    hosts = request.topology.hosts
    results = run_on_hosts(
        [host.name for host in hosts], argv, timeout_s=_LIMIT_S, cwd=str(Path.cwd()), env=forwarded_env(request)
    )
    problems = find_problems(hosts, results)
    if not problems:
        return () if request.is_filtered else find_idle_gpus(hosts, results)
    raise UserError(
        f"ranks could not start on {len(problems)} of {len(hosts)} hosts",
        where=request.hostfile,
        found=_named([f"{name}: {problem}" for name, problem in problems.items()]),
        hint="mend them, or leave them out with --exclude; `python -m dist_trainer doctor` says more of them",
    )


def find_problems(hosts: tuple[Host, ...], results: Mapping[str, RemoteResult]) -> dict[str, str]:
    """What is wrong, by host. A host without any GPU is one that trains on its CPU."""
    problems = {}
    for host in hosts:
        result = results[host.name]
        if result.problem is not None:
            problems[host.name] = str(result.problem)
        elif result.status != 0:
            said = result.stderr.strip().splitlines()
            problems[host.name] = said[-1] if said else f"the Python there ended with status {result.status}"
        else:
            num_gpus = _num_gpus(result)
            if 0 < num_gpus <= host.slots[-1]:
                problems[host.name] = f"it has {num_gpus} GPUs, and slot {host.slots[-1]} needs {host.slots[-1] + 1}"
    return problems


def find_idle_gpus(hosts: tuple[Host, ...], results: Mapping[str, RemoteResult]) -> tuple[str, ...]:
    """A notice where the hostfile gives fewer slots than hosts have GPUs: most likely a slip, and allowed."""
    idle = [
        f"{host.name} ({host.num_slots} of {_num_gpus(results[host.name])})"
        for host in hosts
        if _num_gpus(results[host.name]) > host.num_slots
    ]
    return (f"GPUs without a slot in the hostfile stay idle: {_named(idle)}",) if idle else ()


def _named(hosts: list[str]) -> str:
    """Of very many hosts the first are named."""
    more = len(hosts) - _NUM_NAMED
    return "; ".join(hosts[:_NUM_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _num_gpus(result: RemoteResult) -> int:
    return int(result.stdout.split()[-1])
