"""The order of an examination: which questions all hosts are asked, and what is tried between them."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from dist_trainer.cluster.topology import is_own_name
from dist_trainer.doctor import needs as planning
from dist_trainer.doctor.clock import Offset, RoundTrip, offset_of
from dist_trainer.doctor.examination import Asker, Examination, HostReport, Task, Trial
from dist_trainer.doctor.facts import (
    ClockReading,
    Connections,
    Folder,
    HostGpus,
    Listening,
    RankReports,
    Seen,
    SystemFacts,
)
from dist_trainer.doctor.needs import Device, Needs
from dist_trainer.doctor.probes import folder as folder_probe
from dist_trainer.doctor.probes import software
from dist_trainer.doctor.session import Reply, Route, Session, read
from dist_trainer.doctor.startup import look_again
from dist_trainer.doctor.trial import trial_of
from dist_trainer.doctor.ways import enough_files, routes
from dist_trainer.errors import EXIT_USER_ERROR
from dist_trainer.launch.hosts import remote
from dist_trainer.launch.hosts.ssh import CONNECT_TIMEOUT_S

Facts = TypeVar("Facts")

_START_LIMIT_S = CONNECT_TIMEOUT_S + 15.0
_ANSWER_LIMIT_S = 15.0
_CONNECT_LIMIT_S = 3.0
_TRIAL_LIMIT_S = 60
_PLAN_LIMIT_S = 120.0
_NUM_CLOCK_TRIPS = 5
# All hosts write at the same time, maybe to one storage: limits on their sum and on each.
_WRITE_BYTES_IN_ALL = 2**30
_WRITE_BYTES = 2**26


def examine(task: Task) -> Examination:
    """Asks all hosts. A failure on a host is part of the result and raises nothing."""
    started_s = time.monotonic()
    with enough_files(len(task.names)) as usual_limit:
        ways = routes(task, os.environ, socket.gethostname(), open_files=usual_limit)
        found = asyncio.run(_Visit(task, ways).make())
    found = look_again(task, found)
    return replace(found, seconds=time.monotonic() - started_s)


class _Visit:
    """An examination in progress: what each host has answered so far."""

    def __init__(self, task: Task, ways: list[Route]) -> None:
        self._task = task
        self._session = Session(ways)
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
            names_slots=task.names_slots,
            trial=trial,
        )

    async def _ask_all(self) -> tuple[Trial, Needs]:
        task = self._task
        first = await self._ask(SystemFacts, "facts", "facts", timeout_s=_START_LIMIT_S, ports=[task.port.number])
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
        """Asks the question and stores the answers in the reports' field `name`, or why there is none."""
        replies = await self._session.ask(do, timeout_s=timeout_s, **options)
        for host, reply in replies.items():
            report = self._reports[host]
            if reply.value is None:
                self._note_silence(host, do, reply)
                continue
            try:
                answer: dict[str, Any] = {name: read(kind, reply.value)}
                self._reports[host] = replace(report, **answer)
            except ValueError as error:
                self._reports[host] = replace(report, unanswered={**report.unanswered, do: str(error)})
        return replies

    def _note_silence(self, host: str, do: str, reply: Reply) -> None:
        report, words = self._reports[host], reply.silence.words if reply.silence else ""
        self._reports[host] = replace(report, unanswered={**report.unanswered, do: words})

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
                if reply.value is None:
                    self._note_silence(host, "clock", reply)
                    continue
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
        """Each host opens connections to its neighbours, once all of them listen."""
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
            first = self._reports[next(iter(trial.hosts))]
            assert first.listening is not None
            await self._ask(
                RankReports,
                "ranks",
                "reduce",
                timeout_s=_TRIAL_LIMIT_S + 5.0,
                only=tuple(trial.hosts),
                hosts={host: list(slots) for host, slots in trial.hosts.items()},
                port=first.listening.meeting_port,
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
            if result.status == EXIT_USER_ERROR and lines:
                return replace(needs, refused=lines[-1])
            return replace(needs, plan_problem=str(result.problem or (lines[-1] if lines else "no plan was made")))
        return replace(needs, plan=planning.read_plan(result.stdout))

    def _is_asked(self) -> bool:
        """Whether this host is one of the hosts to examine."""
        hostname = socket.gethostname()
        names = {report.facts.hostname for report in self._reports.values() if report.facts}
        return hostname in names or any(is_own_name(name, hostname) for name in self._reports)
