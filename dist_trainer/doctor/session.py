"""Asks many hosts at once: one process per connection, questions and answers as lines of JSON.

A connection leads to one host (ssh, or a process on this host) or to all (srun, which copies each line to its tasks).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dist_trainer.doctor import protocol
from dist_trainer.launch.hosts import remote
from dist_trainer.launch.hosts.ssh import Problem, ssh_problem

Facts = TypeVar("Facts")
_END_LIMIT_S = 5.0
_MOST_NOISE = 5


@dataclass(frozen=True)
class Route:
    """A command that starts a respondent on each of `hosts`, connected to this process's pipes."""

    hosts: tuple[str, ...]
    command: tuple[str, ...]


@dataclass(frozen=True)
class Silence:
    """Why a host gave no answer. `problem`: the connection's failure, None if the connection worked.

    `status`: the respondent's exit status, if it ended instead of answering. `is_final`: False if the respondent lives
    and answered with an error, so that it can be asked other questions.
    """

    words: str
    problem: Problem | None = None
    status: int | None = None
    is_final: bool = True


@dataclass(frozen=True)
class Reply:
    """One host's answer, or why there is none. Times are by this host's wall clock."""

    value: dict[str, Any] | None
    silence: Silence | None
    sent_s: float
    received_s: float


class Session:
    """Open connections. `silent`: hosts that failed to answer once; they are not asked again."""

    def __init__(self, routes: Sequence[Route], *, fan_out: int = remote.FAN_OUT) -> None:
        self._lines = [_Connection(route) for route in routes]
        self._fan_out = fan_out
        self._next_id = 1
        self.silent: dict[str, Silence] = {}

    @property
    def noise(self) -> dict[str, tuple[str, ...]]:
        """Lines on a host's connection that are no answers, such as those that its shell's start files print."""
        return {
            host: tuple(line.noise)
            for line in self._lines
            if line.noise and len(line.route.hosts) == 1
            for host in line.route.hosts
        }

    async def ask(
        self, do: str, *, timeout_s: float, only: Iterable[str] | None = None, **options: Any
    ) -> dict[str, Reply]:
        """Asks these hosts (by default all that are not silent) at the same time; only so many connections are made at
        once. A host that does not answer is silent from then on.
        """
        number = self._next_id
        self._next_id += 1
        text = json.dumps({"id": number, "do": do, **options}).encode() + b"\n"
        wanted = set(self._hosts() if only is None else only)
        places = asyncio.Semaphore(self._fan_out)

        async def one(line: _Connection) -> dict[str, Reply]:
            asked = [host for host in line.route.hosts if host in wanted and host not in self.silent]
            if not asked:
                return {}
            if line.is_open:
                return await line.ask(number, text, asked, timeout_s)
            async with places:
                await line.open()
                return await line.ask(number, text, asked, timeout_s)

        replies: dict[str, Reply] = {}
        for found in await asyncio.gather(*map(one, self._lines)):
            replies |= found
        for host, reply in replies.items():
            if reply.silence is not None and reply.silence.is_final:
                self.silent[host] = reply.silence
        return {host: replies[host] for host in self._hosts() if host in replies}

    async def close(self) -> None:
        """Closes all connections. The respondents clean up when their stdin ends, and have a few seconds for that."""
        await asyncio.gather(*(line.close() for line in self._lines))

    def _hosts(self) -> list[str]:
        return [host for line in self._lines for host in line.route.hosts]


def read(kind: type[Facts], value: Mapping[str, Any]) -> Facts:
    """The value as a dataclass of `facts`; unknown fields are ignored. Raises ValueError if it does not fit."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"not as this version has it: {error.errors()[0]['loc']}") from error


class _Connection:
    def __init__(self, route: Route) -> None:
        self.route = route
        self.noise: list[str] = []
        self._process: remote.Running | None = None
        self._waiting: dict[tuple[str, int], asyncio.Future[tuple[float, dict[str, Any] | Silence]]] = {}
        self._unpacker = protocol.Unpacker()
        self._stderr = bytearray()
        self._reading: asyncio.Task[None] | None = None
        self._ended: Silence | None = None

    @property
    def is_open(self) -> bool:
        return self._process is not None or self._ended is not None

    async def open(self) -> None:
        try:
            self._process = await remote.start(self.route.command)
        except OSError as error:
            self._ended = Silence(f"{self.route.command[0]} cannot be started here: {error.strerror}")
            return
        self._reading = asyncio.create_task(self._read(self._process))

    async def ask(self, number: int, text: bytes, hosts: Sequence[str], timeout_s: float) -> dict[str, Reply]:
        sent_s = time.time()
        if self._process is None or self._ended is not None:
            assert self._ended is not None
            return {host: Reply(None, self._ended, sent_s, sent_s) for host in hosts}
        loop = asyncio.get_running_loop()
        futures = {host: loop.create_future() for host in hosts}
        self._waiting |= {(host, number): future for host, future in futures.items()}
        # If the other end is closed, `_read` finds out why.
        with suppress(BrokenPipeError, ConnectionResetError, asyncio.TimeoutError):
            self._process.stdin.write(text)
            await asyncio.wait_for(self._process.stdin.drain(), timeout_s)
        await asyncio.wait(futures.values(), timeout=timeout_s)
        return {host: self._reply(future, sent_s, timeout_s) for host, future in futures.items()}

    async def close(self) -> None:
        if self._process is None or self._reading is None:
            return
        self._process.stdin.close()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._reading), _END_LIMIT_S)
        await self._process.end()
        await self._reading

    async def _read(self, process: remote.Running) -> None:
        errors = asyncio.create_task(remote.collect(process.stderr, self._stderr))
        async for line in process.stdout:
            self._take(line)
        await errors
        status = await process.wait()
        self._ended = why_it_ended(self.route.command[0], status, self._stderr.decode(errors="replace"))
        for future in self._waiting.values():
            if not future.done():
                future.set_result((time.time(), self._ended))

    def _take(self, line: bytes) -> None:
        received_s = time.time()
        try:
            taken = self._unpacker.take(line)
        except ValueError:
            if len(self.noise) < _MOST_NOISE and line.strip():
                self.noise.append(line.decode(errors="replace").strip())
            return
        if taken is None:
            return
        host, number, said = taken
        future = self._waiting.get((host, number))
        if future is not None and not future.done():
            future.set_result((received_s, said))

    def _reply(
        self, future: asyncio.Future[tuple[float, dict[str, Any] | Silence]], sent_s: float, timeout_s: float
    ) -> Reply:
        if not future.done():
            return Reply(None, Silence(f"no answer within {timeout_s:g} s"), sent_s, time.time())
        received_s, said = future.result()
        if isinstance(said, Silence):
            return Reply(None, said, sent_s, received_s)
        if "error" in said:
            return Reply(None, Silence(said["error"], is_final=False), sent_s, received_s)
        return Reply(said["answer"], None, sent_s, received_s)


def why_it_ended(program: str, status: int, stderr: str) -> Silence:
    """Why a connection's process ended, from its exit status and its stderr."""
    problem = ssh_problem(status, stderr) if program == "ssh" else None
    if problem is not None:
        return Silence(str(problem), problem)
    lines = [line for line in stderr.splitlines() if line.strip()]
    words = f"the probe ended with status {status}" + (f": {lines[-1].strip()}" if lines else "")
    return Silence(words, status=status)
