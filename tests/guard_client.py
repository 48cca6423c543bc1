"""A guard's connection without a guard: what tests say to the launching process, and what it answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from dist_trainer.launch.guards.connecting import connect
from dist_trainer.launch.guards.protocol import encode

# What is awaited comes at once; a test in which it does not is to fail. Beats come all the while.
_LIMIT_S = 30.0
SECRET = b"what launch and its guards know."


class GuardClient:
    """Proved on both sides. Raises as `connect` does."""

    def __init__(self, port: int, secret: bytes = SECRET) -> None:
        self.socket, self.channel = connect(("127.0.0.1", port), secret, told_to_end=lambda: False)
        self.socket.settimeout(_LIMIT_S)

    def __enter__(self) -> GuardClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, kind: str, **facts: object) -> bytes:
        """What went over the network."""
        data = self.channel.seal(encode(kind, **facts))
        self.socket.sendall(data)
        return data

    def hello(self, rank: int, host: str = "node1", local_rank: int = 0) -> bytes:
        return self.say("hello", rank=rank, host=host, local_rank=local_rank)

    def messages(self) -> Iterator[dict[str, Any]]:
        """Until the launching process closes the connection. Raises TimeoutError where it does not for a long time."""
        deadline_s = time.monotonic() + _LIMIT_S
        while data := self.socket.recv(1 << 16):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the connection was not closed within {_LIMIT_S:.0f} s")
            yield from self.channel.feed(data)

    def messages_until(self, kind: str) -> Iterator[dict[str, Any]]:
        """Those that come up to the first of this kind. Raises TimeoutError where none comes."""
        for message in self.messages():
            yield message
            if message["kind"] == kind:
                return

    def first(self, kind: str) -> dict[str, Any]:
        """Raises TimeoutError where none comes."""
        return next(message for message in self.messages() if message["kind"] == kind)


def wait_until(is_so: Callable[[], object]) -> None:
    """Raises TimeoutError where it does not become so."""
    deadline_s = time.monotonic() + _LIMIT_S
    while not is_so():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"it was not so within {_LIMIT_S:.0f} s")
        time.sleep(0.01)


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side closes it, within the connection's time limit; what it says before does not matter."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True
