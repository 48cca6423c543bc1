"""Checks over ssh whether ranks could start on the other hosts of a run, before anything is started.

The same connection brings the run's secret to those hosts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from dist_trainer.cluster.topology import Host
from dist_trainer.errors import UserError
from dist_trainer.launch.environment import SEARCH_PATHS, forwarded_env
from dist_trainer.launch.hosts.placement import SLOTS_HINT, gpu_trouble
from dist_trainer.launch.hosts.remote import RemoteResult, run_on_hosts
from dist_trainer.launch.hosts.run_secret import RunSecret
from dist_trainer.launch.plan import LaunchRequest

_LIMIT_S = 60.0
# A host that does not answer within this time probably never got the secret; it is of no use after the run anyway.
_TAKE_BACK_LIMIT_S = 5.0
_NUM_NAMED = 8


def check_hosts(request: LaunchRequest, secret: RunSecret, *, is_chosen: bool = False) -> None:
    """Asks all hosts at once for their GPUs, using the Python and the folder that the ranks will use.

    Leaves the secret on each of them, in its file.

    Raises UserError naming the hosts that do not answer, lack the Python or the folder, or have other GPUs than the
    hostfile says. `is_chosen`: the user named some of the slots.
    """
    argv = [request.facts.interpreter, "-m", "dist_trainer.launch.hosts.facts", "from-stdin"]
    hosts = request.topology.hosts
    env = forwarded_env(request) | dict(request.env)
    results = run_on_hosts(
        [host.login for host in hosts],
        argv,
        timeout_s=_LIMIT_S,
        # On stdin, because ssh's command line is visible to all; PATH and the like have to be set before the start.
        stdin=json.dumps({"path": secret.source, "secret": secret.value.hex(), "env": env}).encode(),
        cwd=str(Path.cwd()),
        env={name: env[name] for name in SEARCH_PATHS if name in env},
    )
    problems = find_problems(hosts, results)
    if problems:
        raise UserError(
            f"ranks could not start on {len(problems)} of {len(hosts)} hosts",
            where=request.hostfile,
            found=_named([f"{name}: {problem}" for name, problem in problems.items()]),
            hint="mend them, or leave them out with --exclude; `python -m dist_trainer doctor` says more of them",
        )
    misfits = find_misfits(hosts, results, is_chosen=is_chosen)
    if misfits:
        raise UserError(
            f"the slots of {len(misfits)} of {len(hosts)} hosts are not their GPUs",
            where=request.hostfile,
            found=_named([f"{host.name} ({host.place}): {trouble}" for host, trouble in misfits]),
            hint=SLOTS_HINT,
        )


def take_back_secret(hosts: Iterable[str], secret: RunSecret) -> None:
    """Removes the secret's file on hosts where no guard has come, which would have removed it."""
    run_on_hosts(hosts, ["rm", "-f", "--", secret.source], timeout_s=_TAKE_BACK_LIMIT_S)


def find_problems(hosts: tuple[Host, ...], results: Mapping[str, RemoteResult]) -> dict[str, str]:
    """Host -> what keeps ranks from starting there."""
    problems = {}
    for host in hosts:
        result = results[host.login]
        if result.problem is not None:
            problems[host.name] = str(result.problem)
        elif result.status != 0:
            said = result.stderr.strip().splitlines()
            problems[host.name] = said[-1] if said else f"the Python there ended with status {result.status}"
    return problems


def find_misfits(
    hosts: tuple[Host, ...], results: Mapping[str, RemoteResult], *, is_chosen: bool
) -> list[tuple[Host, str]]:
    """The hosts whose GPUs do not match their slots, with the mismatch in words."""
    troubles = ((host, gpu_trouble(host, int(_last_word(results[host.login])), is_chosen=is_chosen)) for host in hosts)
    return [(host, trouble) for host, trouble in troubles if trouble]


def _named(hosts: list[str]) -> str:
    """The hosts in words; of very many only the first are named."""
    more = len(hosts) - _NUM_NAMED
    return "; ".join(hosts[:_NUM_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _last_word(result: RemoteResult) -> str:
    """The last line of stderr: earlier ones may come from a shell's start files."""
    return result.stdout.split()[-1]
