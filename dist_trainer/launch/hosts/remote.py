"""Runs one command on many hosts over ssh, up to a number at once, each with a time limit; directly on this host.

The command's words arrive literally: they are quoted here for the POSIX shell on the other side.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from asyncio.subprocess import Process
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import BinaryIO

from dist_trainer.launch.hosts.ssh import Problem, command_for, shell_text, ssh_problem

FAN_OUT = 64
_LINE_LIMIT_BYTES = 2**24


@dataclass(frozen=True)
class RemoteResult:
    """The command's result on one host. `status`: its exit status; None if it did not run, and `problem` says why."""

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
    """Runs `argv` on every host, at most `fan_out` at a time and each for at most `timeout_s`; waits for all.

    `cwd` and the variables of `env` apply on the hosts. A failure on a host is in its result; nothing is raised for it.
    At the time limit the connection is closed, but a command on another host that neither reads its stdin nor writes
    may go on there. Not to be called inside a running event loop.
    """
    return asyncio.run(_run_on_hosts(tuple(hosts), shell_text(argv, cwd=cwd, env=env), stdin, timeout_s, fan_out))


async def run_here(argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"") -> RemoteResult:
    """The same for one command on this host, to be awaited in a running event loop."""
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
        # A negative status (a signal) is seen only of a command that ran directly on this host.
        return ended(128 - status)
    problem = ssh_problem(status, stderr.decode(errors="replace")) if command[0] == "ssh" else None
    return ended(None if problem else status, problem)


class Running:
    """A process with pipes for its three standard streams."""

    def __init__(
        self,
        process: Process,
        stdin: asyncio.StreamWriter,
        stdout: asyncio.StreamReader,
        stderr: asyncio.StreamReader,
        reading: Sequence[asyncio.ReadTransport],
    ) -> None:
        """`reading` are the transports of stdout and stderr."""
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self._process, self._reading = process, reading

    async def wait(self) -> int:
        """Its exit status, when it has ended."""
        return await self._process.wait()

    async def end(self) -> None:
        """Kills it if it still runs; what it started on another host notices that the connection is closed.

        Processes that it started here may still hold the pipes, so they are closed on our side.
        """
        if not self.stdin.is_closing():
            self.stdin.transport.abort()
        for transport in self._reading:
            transport.close()
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()


async def start(command: Sequence[str]) -> Running:
    """Raises OSError where the command cannot be started."""
    # Pipes of our own: those that asyncio makes for a process cannot be closed while somebody holds their other ends.
    with ExitStack() as theirs, ExitStack() as ours:
        (stdin, in_), (out, stdout), (err, stderr) = (_pipe() for _ in range(3))
        for file in (stdin, stdout, stderr):
            theirs.enter_context(file)
        for file in (in_, out, err):
            ours.enter_context(file)
        process = await asyncio.create_subprocess_exec(*command, stdin=stdin, stdout=stdout, stderr=stderr)
        # The transports close them.
        ours.pop_all()
    read_out, read_err = await _reader(out), await _reader(err)
    return Running(process, await _writer(in_), read_out[0], read_err[0], (read_out[1], read_err[1]))


def _pipe() -> tuple[BinaryIO, BinaryIO]:
    """Its reading end and its writing one."""
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb", buffering=0), os.fdopen(writing, "wb", buffering=0)


async def _reader(pipe: BinaryIO) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    reader = asyncio.StreamReader(limit=_LINE_LIMIT_BYTES)
    connect = asyncio.get_running_loop().connect_read_pipe
    transport, _ = await connect(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader, transport


async def _writer(pipe: BinaryIO) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    # Nothing is read here: the protocol is the part that waits until there is room.
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), pipe
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    # A command that ends without having read all of its stdin has not failed by that.
    with suppress(BrokenPipeError, ConnectionResetError):
        stream.write(data)
        await stream.drain()
    stream.close()


async def collect(stream: asyncio.StreamReader, into: bytearray) -> None:
    """Appends everything that the stream gives, until its end."""
    while block := await stream.read(2**16):
        into += block
