"""One command on many hosts: over ssh, all at once up to a bound, each with a time limit; this host itself directly.

The words of a command arrive as they are: what goes to the other side is text for a POSIX shell, quoted here.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import socket
import time
from asyncio.subprocess import Process, SubprocessStreamProtocol
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from dist_trainer.cluster.topology import is_own_name

FAN_OUT = 64
CONNECT_TIMEOUT_S = 10
# A connection over which nothing comes back for so long is lost: 3 times unanswered.
_ALIVE_EVERY_S = 5
_LINE_LIMIT_BYTES = 2**24

ProblemKind = Literal[
    "unknown host", "refused", "no route", "no answer", "permission denied", "host key", "lost", "time limit", "ssh"
]

_SSH_SAYS: tuple[tuple[str, ProblemKind, str], ...] = (
    (r"Could not resolve hostname", "unknown host", "no address is known for this name"),
    (r"Connection refused", "refused", "the host answers, and no sshd listens there"),
    (r"No route to host|Network is unreachable", "no route", "no route leads to it: it is down, or its network is"),
    (r"(Connection|Operation) timed out|Connection timed out during", "no answer", "nothing answers at its address"),
    (r"Host key verification failed|HOST IDENTIFICATION HAS CHANGED|host key is known", "host key", ""),
    (r"Permission denied \(", "permission denied", "no key of this user is accepted there"),
    (r"Too many authentication failures", "permission denied", "no key of this user is accepted there"),
    (
        r"not responding|Broken pipe|Connection (closed|reset)|Connection to .* closed",
        "lost",
        "the connection broke off",
    ),
)
_HOST_KEY_CHANGED = "its host key is not the one in known_hosts"
_HOST_KEY_UNKNOWN = "its host key is not known here yet"


@dataclass(frozen=True)
class Problem:
    """Why a command did not run to an end of its own, in plain words. `detail` is what ssh said, if it did."""

    kind: ProblemKind
    words: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.words} ({self.detail})" if self.detail else self.words


@dataclass(frozen=True)
class RemoteResult:
    """What became of the command on one host: `status` is its exit status, None where `problem` says why not."""

    host: str
    status: int | None
    stdout: str
    stderr: str
    seconds: float
    problem: Problem | None = None

    @property
    def is_ok(self) -> bool:
        return self.status == 0


def run_on_hosts(
    hosts: Iterable[str],
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes = b"",
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    fan_out: int = FAN_OUT,
) -> dict[str, RemoteResult]:
    """Runs `argv` on every host, at most `fan_out` at a time, each for at most `timeout_s`, and waits for all.

    `cwd` and the variables of `env` hold there. What goes wrong on a host stands in its result: nothing is raised for
    it. At the time limit the connection is closed; a command on another host that neither reads its stdin nor writes
    may then run on. Not for use inside a running event loop.
    """
    return asyncio.run(_run_on_hosts(tuple(hosts), shell_text(argv, cwd=cwd, env=env), stdin, timeout_s, fan_out))


def shell_text(argv: Sequence[str], *, cwd: str | None = None, env: Mapping[str, str] | None = None) -> str:
    """The command as text for a POSIX shell, which replaces itself by it."""
    variables = [f"{name}={value}" for name, value in sorted((env or {}).items())]
    command = "exec " + shlex.join(["env", *variables, *argv] if variables else argv)
    return f"cd {shlex.quote(cwd)} && {command}" if cwd else command


def command_for(host: str, text: str, *, hostname: str) -> tuple[str, ...]:
    """The command line that has a shell on `host` run the text: through ssh, but for this host, named `hostname`."""
    if is_own_name(host, hostname):
        return ("/bin/sh", "-c", text)
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": CONNECT_TIMEOUT_S,
        "ServerAliveInterval": _ALIVE_EVERY_S,
        "ServerAliveCountMax": 3,
        "ClearAllForwardings": "yes",
        "LogLevel": "ERROR",
    }
    return (
        "ssh",
        "-T",
        "-x",
        *(word for name, value in options.items() for word in ("-o", f"{name}={value}")),
        host,
        text,
    )


def ssh_problem(status: int, stderr: str) -> Problem | None:
    """What an ssh that ended with this status says went wrong between the hosts; None where the command did run."""
    if status != 255:
        return None
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for pattern, kind, words in _SSH_SAYS:
        said = next((line for line in reversed(lines) if re.search(pattern, line)), None)
        if said is not None:
            if kind == "host key":
                words = _HOST_KEY_CHANGED if "HAS CHANGED" in stderr else _HOST_KEY_UNKNOWN
            return Problem(kind, words, said)
    if not lines:
        return Problem("lost", "the connection or the command there was ended, and nothing was said")
    return Problem("ssh", "ssh failed", lines[-1])


async def run_here(argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"") -> RemoteResult:
    """The same for one command on this host, inside a running event loop."""
    return await _run_on_host("localhost", argv, stdin, timeout_s)


async def _run_on_hosts(
    hosts: tuple[str, ...], text: str, stdin: bytes, timeout_s: float, fan_out: int
) -> dict[str, RemoteResult]:
    places = asyncio.Semaphore(fan_out)
    hostname = socket.gethostname()

    async def on(host: str) -> RemoteResult:
        async with places:
            return await _run_on_host(host, command_for(host, text, hostname=hostname), stdin, timeout_s)

    return dict(zip(hosts, await asyncio.gather(*map(on, hosts)), strict=True))


async def _run_on_host(host: str, command: Sequence[str], stdin: bytes, timeout_s: float) -> RemoteResult:
    started_s = time.monotonic()

    def ended(status: int | None, problem: Problem | None = None) -> RemoteResult:
        out, err = (stream.decode(errors="replace") for stream in (stdout, stderr))
        return RemoteResult(host, status, out, err, time.monotonic() - started_s, problem)

    stdout, stderr = bytearray(), bytearray()
    try:
        process = await start(command)
    except OSError as error:
        return ended(None, Problem("ssh", f"{command[0]} cannot be started here: {error.strerror}"))

    async def to_the_end() -> int:
        await asyncio.gather(
            _feed(process.stdin, stdin), collect(process.stdout, stdout), collect(process.stderr, stderr)
        )
        return await process.wait()

    try:
        status = await asyncio.wait_for(to_the_end(), timeout_s)
    except asyncio.TimeoutError:
        return ended(None, Problem("time limit", f"no end within {timeout_s:g} s"))
    finally:
        await process.end()
    if status < 0:
        # Only what runs here directly can be seen to end so.
        return ended(128 - status)
    problem = ssh_problem(status, stderr.decode(errors="replace")) if command[0] == "ssh" else None
    return ended(None if problem else status, problem)


class Running:
    """A process with pipes to all three of its streams."""

    def __init__(self, process: Process, transport: asyncio.SubprocessTransport) -> None:
        assert process.stdin and process.stdout and process.stderr
        self.stdin, self.stdout, self.stderr = process.stdin, process.stdout, process.stderr
        self._process = process
        self._transport = transport

    async def wait(self) -> int:
        """Its exit status, when it has ended and nobody holds its pipes open any more."""
        return await self._process.wait()

    async def end(self) -> None:
        """Kills it where it has not ended; what it started on another host sees its connection close.

        What it started here may hold the pipes open: they are closed on this side.
        """
        self._transport.close()
        await self._process.wait()


async def start(command: Sequence[str]) -> Running:
    """Raises OSError where the command cannot be started."""
    loop, pipe = asyncio.get_running_loop(), asyncio.subprocess.PIPE
    # As asyncio.create_subprocess_exec does it, which keeps the transport, and with it the pipes, to itself.
    transport, protocol = await loop.subprocess_exec(
        lambda: SubprocessStreamProtocol(_LINE_LIMIT_BYTES, loop), *command, stdin=pipe, stdout=pipe, stderr=pipe
    )
    return Running(Process(transport, protocol, loop), transport)


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    # A command that does not read its stdin to the end is no failure of its own.
    with suppress(BrokenPipeError, ConnectionResetError):
        stream.write(data)
        await stream.drain()
    stream.close()


async def collect(stream: asyncio.StreamReader, into: bytearray) -> None:
    """All that comes, up to the end."""
    while block := await stream.read(2**16):
        into += block
