"""The order of an examination: whom to reach and how, which questions, and what is tried between the hosts."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from dist_trainer.cluster.topology import Topology, is_own_name
from dist_trainer.config.resolve import Request
from dist_trainer.doctor import needs as planning
from dist_trainer.doctor.clock import Offset, RoundTrip, offset_of
from dist_trainer.doctor.examination import Asker, Examination, HostReport, How, MeetingPort, Startup, Trial
from dist_trainer.doctor.facts import (
    ClockReading,
    Connections,
    Folder,
    HostFacts,
    HostGpus,
    Listening,
    RankReports,
    Seen,
)
from dist_trainer.doctor.needs import Device, Needs
from dist_trainer.doctor.probes import folder as folder_probe
from dist_trainer.doctor.probes import software
from dist_trainer.doctor.session import Reply, Route, Session, read
from dist_trainer.launch import remote

Facts = TypeVar("Facts")

_MODULE = "dist_trainer.doctor.host"
_START_LIMIT_S = remote.CONNECT_TIMEOUT_S + 15.0
_ANSWER_LIMIT_S = 15.0
_CONNECT_LIMIT_S = 3.0
_TRIAL_LIMIT_S = 60
_PLAN_LIMIT_S = 120.0
_NUM_CLOCK_TRIPS = 5
# All hosts write at once, and their storage may be one: this much together, and this much each at most.
_WRITE_BYTES_IN_ALL = 2**30
_WRITE_BYTES = 2**26
# gloo connects every rank with every other: above this world, one rank of each host takes part in the trial.
MOST_TRIAL_RANKS = 512

# With the interpreter and the folder as $1 and $2: what stands in the way of a probe that did not start.
_STARTUP_SCRIPT = """\
cd "$2" 2>/dev/null && echo folder
[ -x "$1" ] && echo interpreter
"$1" -c 'import sys; print("python", sys.version.split()[0])' 2>/dev/null
"$1" -c 'import dist_trainer.doctor.host' 2>&1 | tail -n 1 | sed 's/^/error /'
"""


@dataclass(frozen=True)
class Task:
    """What is to be examined. `folder`: where the runs' folders are made, absolute, and there on this host."""

    how: How
    topology: Topology
    request: Request
    needs: Needs
    port: MeetingPort
    folder: str
    cwd: str
    interpreter: str = sys.executable

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(host.name for host in self.topology.hosts)


def examine(task: Task) -> Examination:
    """Asks all hosts. What goes wrong on one of them is part of what was found: nothing is raised for it."""
    started_s = time.monotonic()
    found = asyncio.run(_Visit(task).make())
    found = _with_startups(task, found)
    return replace(found, seconds=time.monotonic() - started_s)


def routes(task: Task, environ: Mapping[str, str], hostname: str) -> list[Route]:
    """How the questions reach the hosts: one step over all nodes under SLURM, else a connection to each."""
    # A checkout that is not installed is found by this, there as here.
    env = {"PYTHONPATH": environ["PYTHONPATH"]} if environ.get("PYTHONPATH") else {}
    if task.how == "srun":
        return [Route(task.names, srun_command(task.names, (task.interpreter, "-m", _MODULE)))]
    texts = {
        name: remote.shell_text((task.interpreter, "-m", _MODULE, name), cwd=task.cwd, env=env) for name in task.names
    }
    return [Route((name,), remote.command_for(name, text, hostname=hostname)) for name, text in texts.items()]


def srun_command(names: tuple[str, ...], argv: tuple[str, ...]) -> tuple[str, ...]:
    """One task a node, beside whatever runs there, with every line of stdin copied to each."""
    count = len(names)
    # The node list is said, for a step may otherwise be given part of the job's nodes.
    return (
        *("srun", "--overlap", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"),
        *(f"--nodelist={','.join(names)}", "--cpu-bind=none", "--input=all"),
        *argv,
    )


class _Visit:
    """One examination under way: what each host has said so far."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._session = Session(routes(task, os.environ, socket.gethostname()))
        self._token = secrets.token_hex(4)
        self._reports = {host.name: HostReport(host.name, host.slots) for host in task.topology.hosts}
        self._sees_folder: bool | None = None

    async def make(self) -> Examination:
        try:
            trial, needs = await self._ask_all()
        finally:
            await self._session.close()
        task = self._task
        noise = self._session.noise
        return Examination(
            how=task.how,
            asker=Asker(
                hostname=socket.gethostname(),
                interpreter=task.interpreter,
                cwd=task.cwd,
                python=software.python_version(),
                packages=software.package_versions(),
                torch_cuda=software.torch_cuda_version(),
                revision=software.revision(),
                is_asked=self._is_asked(),
                sees_folder=self._sees_folder,
            ),
            hosts=tuple(replace(report, noise=noise.get(name, ())) for name, report in self._reports.items()),
            port=task.port,
            folder=task.folder,
            needs=needs,
            trial=trial,
        )

    async def _ask_all(self) -> tuple[Trial, Needs]:
        task = self._task
        first = await self._ask(HostFacts, "facts", "facts", timeout_s=_START_LIMIT_S, ports=[task.port.number])
        self._note_unreachable(first)
        await self._ask_clocks()
        await self._ask(HostGpus, "gpus", "gpus", timeout_s=_ANSWER_LIMIT_S)
        plan = asyncio.create_task(self._plan())
        await self._ask_about_folder()
        await self._ask_about_ways()
        trial = await self._try_all_reduce()
        return trial, await plan

    async def _ask(
        self, kind: type[Facts], name: str, do: str, *, timeout_s: float, **options: Any
    ) -> dict[str, Reply]:
        """Puts the answers into the reports' field `name`, and why there is none where there is none."""
        replies = await self._session.ask(do, timeout_s=timeout_s, **options)
        for host, reply in replies.items():
            report = self._reports[host]
            problem = reply.silence.words if reply.silence else ""
            if reply.value is not None:
                try:
                    answer: dict[str, Any] = {name: read(kind, reply.value)}
                    self._reports[host] = replace(report, **answer)
                    continue
                except ValueError as error:
                    problem = str(error)
            self._reports[host] = replace(report, unanswered={**report.unanswered, do: problem})
        return replies

    def _note_unreachable(self, replies: Mapping[str, Reply]) -> None:
        for host, reply in replies.items():
            if reply.silence is not None and reply.silence.is_final:
                kind = reply.silence.problem.kind if reply.silence.problem else None
                self._reports[host] = replace(
                    self._reports[host], unreachable=reply.silence.words, unreachable_kind=kind, unanswered={}
                )

    async def _ask_clocks(self) -> None:
        trips: dict[str, list[RoundTrip]] = {host: [] for host in self._reports}
        for _ in range(_NUM_CLOCK_TRIPS):
            for host, reply in (await self._session.ask("clock", timeout_s=_ANSWER_LIMIT_S)).items():
                if reply.value is not None:
                    there_s = read(ClockReading, reply.value).time_s
                    trips[host].append(RoundTrip(reply.sent_s, there_s, reply.received_s))
        for host, found in trips.items():
            offset: Offset | None = offset_of(found)
            self._reports[host] = replace(self._reports[host], clock=offset)

    async def _ask_about_folder(self) -> None:
        folder = self._task.folder
        max_bytes = min(_WRITE_BYTES, _WRITE_BYTES_IN_ALL // len(self._reports))
        await self._ask(
            Folder, "folder", "write", timeout_s=_ANSWER_LIMIT_S, folder=folder, token=self._token, max_bytes=max_bytes
        )
        writers = [host for host, report in self._reports.items() if report.folder and not report.folder.error]
        await self._ask(
            Seen, "seen", "look", timeout_s=_ANSWER_LIMIT_S, folder=folder, token=self._token, hosts=writers
        )
        if writers and not self._is_asked():
            seen = folder_probe.look(Path(folder), self._token, writers[:1])
            self._sees_folder = not seen.missing

    async def _ask_about_ways(self) -> None:
        """Each host opens connections to its neighbours, which all wait for them by then."""
        await self._ask(Listening, "listening", "listen", timeout_s=_ANSWER_LIMIT_S)
        ports = {host: report.listening.port for host, report in self._reports.items() if report.listening}
        await self._ask(
            Connections,
            "connections",
            "connect",
            timeout_s=_ANSWER_LIMIT_S,
            ports=ports,
            limit_s=_CONNECT_LIMIT_S,
        )

    async def _try_all_reduce(self) -> Trial:
        trial = trial_of(self._reports.values())
        if trial.why_not is None:
            port = next(report.listening.meeting_port for report in self._reports.values() if report.listening)
            await self._ask(
                RankReports,
                "ranks",
                "reduce",
                timeout_s=_TRIAL_LIMIT_S + 5.0,
                hosts={host: list(slots) for host, slots in trial.hosts.items()},
                port=port,
                device=trial.device,
                limit_s=_TRIAL_LIMIT_S,
            )
        return trial

    async def _plan(self) -> Needs:
        needs = self._task.needs
        device: Device = (
            "cuda" if any(report.gpus and report.gpus.devices for report in self._reports.values()) else "cpu"
        )
        order = planning.planning_order(self._task.request, world_size=self._task.topology.num_ranks, device=device)
        result = await remote.run_here(planning.planning_command(), stdin=order, timeout_s=_PLAN_LIMIT_S)
        if not result.is_ok:
            lines = result.stderr.strip().splitlines()
            return replace(needs, plan_problem=str(result.problem or (lines[-1] if lines else "no plan was made")))
        return replace(needs, plan=planning.read_plan(result.stdout))

    def _is_asked(self) -> bool:
        """Whether this host is one of those that are asked."""
        hostname = socket.gethostname()
        names = {report.facts.hostname for report in self._reports.values() if report.facts}
        return hostname in names or any(is_own_name(name, hostname) for name in self._reports)


def trial_of(reports: Iterable[HostReport]) -> Trial:
    """Which ranks try an all-reduce: of all hosts that can, unless the ways between those are not open."""
    able = [report for report in reports if report.facts and report.facts.packages.get("torch") and report.listening]
    if not able:
        return Trial(why_not="no host can run torch")
    blocked = [
        report.name
        for report in able
        if report.connections is None or any(c.error for c in report.connections.connections)
    ]
    if blocked:
        return Trial(why_not="not every host reaches the others")
    has_gpus = all(report.gpus and len(report.gpus.devices) > max(report.slots) for report in able)
    device: Device = "cuda" if has_gpus and all(report.facts and report.facts.torch_cuda for report in able) else "cpu"
    hosts = {report.name: report.slots for report in able}
    if sum(map(len, hosts.values())) > MOST_TRIAL_RANKS:
        hosts = {name: slots[:1] for name, slots in hosts.items()}
    if sum(map(len, hosts.values())) == 1:
        return Trial(why_not="there is one rank only")
    return Trial(hosts, device)


def _with_startups(task: Task, found: Examination) -> Examination:
    """A second look, with a plain shell, at the hosts that can be reached but on which the probe did not start."""
    dumb = [report.name for report in found.hosts if report.unreachable and report.unreachable_kind is None]
    if not dumb or task.how == "srun":
        return found
    argv = ("sh", "-c", _STARTUP_SCRIPT, "sh", task.interpreter, task.cwd)
    results = remote.run_on_hosts(dumb, argv, timeout_s=_ANSWER_LIMIT_S)
    startups = {host: read_startup(result.stdout) for host, result in results.items() if result.status is not None}
    return replace(found, hosts=tuple(replace(report, startup=startups.get(report.name)) for report in found.hosts))


def read_startup(text: str) -> Startup:
    lines = text.splitlines()
    said = {word: rest for word, _, rest in (line.partition(" ") for line in lines)}
    return Startup(
        has_folder="folder" in lines,
        has_interpreter="interpreter" in lines,
        python=said.get("python"),
        import_error=said.get("error"),
    )
