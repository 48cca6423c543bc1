"""A launch as plain values: what is asked for, and the command that does it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from dist_trainer.cluster.topology import Topology

# The module that `launch` has the launcher start in place of the ranks.
GUARD_MODULE = "dist_trainer.launch.guards.rank_guard"


@dataclass(frozen=True)
class HostFacts:
    """What a plan needs to know of the host that starts the launcher. `num_cores`: those this process may use.
    `mpirun`: "openmpi", or "hydra" (MPICH, Intel MPI).
    """

    hostname: str
    interpreter: str
    num_cores: int
    num_gpus: int
    is_root: bool
    environ: Mapping[str, str]
    mpirun: Literal["openmpi", "hydra"] = "openmpi"


@dataclass(frozen=True)
class Rendezvous:
    """The rendezvous of torchrun's agents that are started by hand on `num_hosts` hosts. `endpoint` is HOST:PORT."""

    num_hosts: int
    host: str
    port: int
    job_id: str

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class LaunchRequest:
    """What to run, and where. `arguments` reach every rank of `module` literally.

    `hostfile`: the path as the user wrote it, None without one; `is_hostfile_marked`: it begins with a byte-order mark.
    `is_filtered`: the topology has fewer slots than the hostfile. `env`: variables that the user set for every rank.
    `is_guarded`: guards make up for what the launcher would do wrong, so that nothing has to be refused. With
    `rendezvous` the topology is only this host's part of the run.
    """

    arguments: tuple[str, ...]
    topology: Topology
    master_port: int
    facts: HostFacts
    module: str = "dist_trainer"
    hostfile: str | None = None
    is_hostfile_marked: bool = False
    is_filtered: bool = False
    env: tuple[tuple[str, str], ...] = ()
    is_guarded: bool = False
    rendezvous: Rendezvous | None = None

    @property
    def is_local(self) -> bool:
        return self.rendezvous is None and self.topology.is_local(self.facts.hostname)

    @property
    def num_ranks(self) -> int:
        """All ranks of the run, also those that are started by hand on other hosts and so are not in `topology`."""
        return self.topology.num_ranks * (self.rendezvous.num_hosts if self.rendezvous else 1)


@dataclass(frozen=True)
class LaunchPlan:
    """The command, in groups of words that belong on one line, and the variables to add to the environment."""

    launcher: str
    command: tuple[tuple[str, ...], ...]
    env: tuple[tuple[str, str], ...]
    num_ranks: int

    @property
    def argv(self) -> tuple[str, ...]:
        return tuple(word for group in self.command for word in group)

    def shell(self) -> str:
        """The command as text to paste into a POSIX shell; the same plan gives the same text."""
        groups = [shlex.join(group) for group in self.command]
        if self.env:
            groups.insert(0, "env " + " ".join(f"{name}={shlex.quote(value)}" for name, value in self.env))
        return " \\\n    ".join(groups) + "\n"


def argument_groups(arguments: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The arguments split before every switch: ('train', '--ds', 'zero2') -> ('train',), ('--ds', 'zero2')."""
    group: list[str] = []
    for argument in arguments:
        if argument.startswith("-") and group:
            yield tuple(group)
            group = []
        group.append(argument)
    if group:
        yield tuple(group)
