"""How a guard connects to the launching process, with proofs from both sides, or gives up."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

from dist_trainer.errors import UserError
from dist_trainer.launch.guards.proof import NO_PROOF, NONCE_BYTES, PROOF_BYTES, GuardProof, StrangerError
from dist_trainer.launch.guards.protocol import SILENCE_S, Channel

# The launching process listens before any guard is started, so where nobody listens it has ended.
REFUSED_LIMIT_S = 2.0
NO_ANSWER_LIMIT_S = 30.0
_ATTEMPT_S = 3.0
_PAUSE_S = 0.2
_LOOK_S = 0.5


class EndedError(Exception):
    """There is no reason to connect any more."""


class _NoProofError(OSError):
    """The connection was closed before the proof (as when very many come at once), or no proof came in time."""


def connect(
    address: tuple[str, int], secret: bytes, *, told_to_end: Callable[[], bool]
) -> tuple[socket.socket, Channel]:
    """Retries as long as it makes sense. Raises EndedError if nobody listens, or once `told_to_end` (checked every few
    seconds) is true; UserError if there is no route, or if the other side does not know the secret.
    """
    started_s = time.monotonic()
    while True:
        try:
            return _try_all(address, secret, told_to_end)
        except (OSError, StrangerError) as error:
            if told_to_end():
                raise EndedError from error
            is_soon = isinstance(error, (ConnectionRefusedError, StrangerError))
            if time.monotonic() - started_s > (REFUSED_LIMIT_S if is_soon else NO_ANSWER_LIMIT_S):
                raise _refusal(address, error) from error
            if isinstance(error, socket.gaierror):
                raise _refusal(address, error) from error
        time.sleep(_PAUSE_S)


def _try_all(address: tuple[str, int], secret: bytes, told_to_end: Callable[[], bool]) -> tuple[socket.socket, Channel]:
    """Tries each address of the name, because a stranger may listen on one of them. Raises the last one's error."""
    failed: OSError | StrangerError = OSError("it has no address")
    for family, kind, protocol, _, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        connected = socket.socket(family, kind, protocol)
        try:
            connected.settimeout(_ATTEMPT_S)
            connected.connect(place)
            channel = _prove(connected, secret, told_to_end)
        except (OSError, StrangerError) as error:
            connected.close()
            failed = error
            continue
        connected.setblocking(False)
        return connected, channel
    raise failed


def _prove(connected: socket.socket, secret: bytes, told_to_end: Callable[[], bool]) -> Channel:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    proof = GuardProof(secret)
    connected.sendall(proof.hello)
    connected.settimeout(_LOOK_S)
    deadline_s = time.monotonic() + SILENCE_S
    challenge = b""
    while len(challenge) < NONCE_BYTES + PROOF_BYTES:
        if time.monotonic() > deadline_s or told_to_end():
            raise _NoProofError("who listens there says nothing")
        with contextlib.suppress(TimeoutError):
            data = connected.recv(NONCE_BYTES + PROOF_BYTES - len(challenge))
            if not data:
                raise _NoProofError("the connection was closed")
            challenge += data
    try:
        answer, channel = proof.answer(challenge)
    except StrangerError:
        with contextlib.suppress(OSError):
            connected.sendall(NO_PROOF)
        raise
    connected.sendall(answer)
    return channel


def _refusal(address: tuple[str, int], error: OSError | StrangerError) -> UserError:
    where = f"{address[0]}:{address[1]}"
    if isinstance(error, StrangerError):
        return UserError(
            f"who answers to {socket.gethostname()} does not know this run's secret",
            where=where,
            hint="see that nobody else listens there; where each host was started by hand, that all have the same "
            "~/.config/dist_trainer/secret, or were given the same --rdzv-id of 32 hexadecimal digits or more",
        )
    return UserError(
        f"the launching process cannot be reached from {socket.gethostname()}",
        where=where,
        found=error.strerror or str(error),
        hint="let hosts of the job connect to each other and to this address",
    )
