"""The command line of ssh, the same for every use here, and the meaning of its errors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dist_trainer.cluster.topology import is_own_name

CONNECT_TIMEOUT_S = 10
# ssh sends a keep-alive this often; after 3 without an answer the connection counts as lost.
_ALIVE_EVERY_S = 5

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
    """Why a command could not run to its own end, in plain words. `detail`: what ssh said, if anything."""

    kind: ProblemKind
    words: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.words} ({self.detail})" if self.detail else self.words


def shell_text(argv: Sequence[str], *, cwd: str | None = None, env: Mapping[str, str] | None = None) -> str:
    """The command as text for a POSIX shell, which replaces itself with it (exec)."""
    variables = [f"{name}={value}" for name, value in sorted((env or {}).items())]
    command = "exec " + shlex.join(["env", *variables, *argv] if variables else argv)
    return f"cd {shlex.quote(cwd)} && {command}" if cwd else command


def command_for(host: str, text: str, *, hostname: str) -> tuple[str, ...]:
    """The command that runs the text in a shell on `host`: through ssh unless `host` is this one (`hostname`)."""
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
    """What went wrong in connecting, from ssh's exit status and stderr; None if the command itself did run."""
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
