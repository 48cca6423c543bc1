"""A guard's end of its connection to the launching process."""

from __future__ import annotations

import socket
import time

from dist_trainer.launch.guards.protocol import BEAT_S, SILENCE_S, Channel, Message, encode

_BLOCK_BYTES = 1 << 16


class Link:
    """`is_lost`: the other side closed the connection, was silent for too long, or its messages were tampered with."""

    def __init__(self, connected: socket.socket, channel: Channel) -> None:
        self.socket, self._channel = connected, channel
        self.is_lost = False
        self._heard_s = self._beaten_s = time.monotonic()

    def send(self, message: bytes) -> None:
        """Blocks until sent, which is acceptable because messages are small and rare."""
        if self.is_lost:
            return
        try:
            self.socket.settimeout(SILENCE_S)
            self.socket.sendall(self._channel.seal(message))
        except OSError:
            self.is_lost = True
        finally:
            self.socket.setblocking(False)

    def receive(self) -> list[Message]:
        """The messages that have arrived, without waiting."""
        try:
            data = self.socket.recv(_BLOCK_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        try:
            messages = self._channel.feed(data)
        except ValueError:
            messages, data = [], b""
        self._heard_s = time.monotonic()
        self.is_lost |= not data
        return messages

    def beat(self) -> None:
        """The heartbeat, to be called at least every BEAT_S: sends one, and checks that the other side's still come."""
        now_s = time.monotonic()
        if now_s - self._beaten_s >= BEAT_S:
            self._beaten_s = now_s
            self.send(encode("beat"))
        self.is_lost |= now_s - self._heard_s > SILENCE_S
