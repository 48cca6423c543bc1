"""A launch as a value: what is asked for, and the command that does it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from dist_trainer.cluster.topology import Topology

# What `launch` has a launcher start in place of the ranks.
GUARD_MODULE = "dist_trainer.launch.guards.rank_guard"


@dataclass(frozen=True)
class HostFacts:
    """What a plan has to know of the host that starts it. `num_cores` are those this process may use. `mpirun`: whose
    it is, "openmpi" or "hydra" (MPICH, Intel MPI).
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
    """Where torchrun's agents meet that were started by hand on `num_hosts` hosts. `endpoint` is HOST:PORT."""

    num_hosts: int
    host: str
    port: int
    job_id: str

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class LaunchRequest:
    """What is to run and where. `arguments` reach every rank of `module` literally.

    `hostfile` is the path as the user wrote it, None when there is none; `is_hostfile_marked`: it begins with a
    byte-order mark. `is_filtered` says that the topology holds fewer slots than the hostfile. `env` are the variables
    that the user named for every rank. `is_guarded`: the ranks' guards bring what a launcher would get wrong, so that
    nothing need be refused. With `rendezvous` the topology is this host's part of the run.
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
        """All ranks of the run; `topology` has this host's alone where others are started by hand."""
        return self.topology.num_ranks * (self.rendezvous.num_hosts if self.rendezvous else 1)


@dataclass(frozen=True)
class LaunchPlan:
    """The command, in groups that belong on one line for a reader, and the variables added to the environment."""

    launcher: str
    command: tuple[tuple[str, ...], ...]
    env: tuple[tuple[str, str], ...]
    num_ranks: int

    @property
    def argv(self) -> tuple[str, ...]:
        return tuple(word for group in self.command for word in group)

    def shell(self) -> str:
        """The command as text that a POSIX shell runs when it is pasted; the same plan gives the same text."""
        groups = [shlex.join(group) for group in self.command]
        if self.env:
            groups.insert(0, "env " + " ".join(f"{name}={shlex.quote(value)}" for name, value in self.env))
        return " \\\n    ".join(groups) + "\n"


def argument_groups(arguments: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The arguments, cut before every switch: ('train', '--ds', 'zero2') -> ('train',), ('--ds', 'zero2')."""
    group: list[str] = []
    for argument in arguments:
        if argument.startswith("-") and group:
            yield tuple(group)
            group = []
        group.append(argument)
    if group:
        yield tuple(group)
