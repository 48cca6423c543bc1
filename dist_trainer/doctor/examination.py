"""Everything that was found out, as one value: the checks judge it, and `--json` prints it beside the findings."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Literal

from dist_trainer.cluster.topology import Topology
from dist_trainer.config.request import Request
from dist_trainer.doctor.clock import Offset
from dist_trainer.doctor.facts import (
    Connections,
    Folder,
    HostGpus,
    Listening,
    RankReports,
    Revision,
    Seen,
    SystemFacts,
)
from dist_trainer.doctor.needs import Needs
from dist_trainer.launch.hosts.ssh import ProblemKind

How = Literal["ssh", "srun", "here"]


@dataclass(frozen=True)
class Task:
    """What to examine. `folder`: the parent of the runs' folders, an absolute path that exists on this host.

    `names_slots`: whether the user said which slots to use, or how many.
    """

    how: How
    topology: Topology
    request: Request
    needs: Needs
    port: MeetingPort
    folder: str
    cwd: str
    interpreter: str = sys.executable
    names_slots: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(host.name for host in self.topology.hosts)


@dataclass(frozen=True)
class Startup:
    """Why the probe did not start on a host that can be reached, as a plain shell finds it.

    `python`: the version of the interpreter at the path that was to be run; None if there is none.
    """

    has_folder: bool
    has_interpreter: bool
    python: str | None
    import_error: str | None


@dataclass(frozen=True)
class HostReport:
    """One host. `unreachable` and `unreachable_kind`: why no command can be run there; None if one can.

    `unanswered`: question -> why it got no answer. A field that is None and not in `unanswered` was not asked.
    """

    name: str
    slots: tuple[int, ...]
    unreachable: str | None = None
    unreachable_kind: ProblemKind | None = None
    startup: Startup | None = None
    facts: SystemFacts | None = None
    gpus: HostGpus | None = None
    clock: Offset | None = None
    folder: Folder | None = None
    seen: Seen | None = None
    listening: Listening | None = None
    connections: Connections | None = None
    ranks: RankReports | None = None
    noise: tuple[str, ...] = ()
    unanswered: dict[str, str] = field(default_factory=dict)

    @property
    def num_slots(self) -> int:
        return len(self.slots)


@dataclass(frozen=True)
class MeetingPort:
    """The port of the rendezvous, on the first host. `said_by`: where the user set it; None for torchrun's default."""

    number: int
    said_by: str | None


@dataclass(frozen=True)
class Trial:
    """The all-reduce that was tried: hosts and slots that took part, in order of ranks; or `why_not`."""

    hosts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    device: Literal["cpu", "cuda"] = "cpu"
    why_not: str | None = None


@dataclass(frozen=True)
class Asker:
    """The host on which the doctor runs. `is_asked`: whether it is one of the hosts to examine.

    `interpreter` and `cwd` are those that the other hosts are told to use. `sees_folder`: whether the file that the
    first host wrote is visible here; None if that was not tried.
    """

    hostname: str
    interpreter: str
    cwd: str
    python: str
    packages: dict[str, str | None] = field(default_factory=dict)
    torch_cuda: str | None = None
    revision: Revision | None = None
    is_asked: bool = True
    sees_folder: bool | None = None


@dataclass(frozen=True)
class Examination:
    """The result of an examination. `seconds`: how long it took."""

    how: How
    asker: Asker
    hosts: tuple[HostReport, ...]
    port: MeetingPort
    folder: str
    needs: Needs
    trial: Trial
    names_slots: bool = False
    seconds: float = 0.0

    @property
    def num_ranks(self) -> int:
        return sum(host.num_slots for host in self.hosts)

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """What the ranks would run on: GPUs if any host has some."""
        return "cuda" if any(host.gpus and host.gpus.devices for host in self.hosts) else "cpu"
