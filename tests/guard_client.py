"""A guard's connection without a guard: what tests say to the launching process, and what it answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from dist_trainer.launch.guards.connecting import connect
from dist_trainer.launch.guards.protocol import encode

SECRET = b"what launch and its guards know."


class GuardClient:
    """Proved on both sides. Raises as `connect` does."""

    def __init__(self, port: int, secret: bytes = SECRET) -> None:
        self.socket, self.channel = connect(("127.0.0.1", port), secret, told_to_end=lambda: False)
        self.socket.settimeout(10)

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
        """Until the launching process closes the connection."""
        while data := self.socket.recv(1 << 16):
            yield from self.channel.feed(data)

    def first(self, kind: str) -> dict[str, Any]:
        return next(message for message in self.messages() if message["kind"] == kind)


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
