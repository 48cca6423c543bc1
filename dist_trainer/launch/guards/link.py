"""A guard's end of its connection to the launching process."""

from __future__ import annotations

import socket
import time

from dist_trainer.launch.guards.protocol import BEAT_S, SILENCE_S, Channel, Message, encode

_BLOCK_BYTES = 1 << 16


class Link:
    """`is_lost` when the other side has gone, is silent for too long, or somebody between has changed what it said."""

    def __init__(self, connected: socket.socket, channel: Channel) -> None:
        self.socket, self._channel = connected, channel
        self.is_lost = False
        self._heard_s = self._beaten_s = time.monotonic()

    def send(self, message: bytes) -> None:
        """Small, and rare: it may wait a moment for the other side."""
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
        """What is there, without waiting."""
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
        """To be called at least every BEAT_S: says that this side is there, and looks whether the other one is."""
        now_s = time.monotonic()
        if now_s - self._beaten_s >= BEAT_S:
            self._beaten_s = now_s
            self.send(encode("beat"))
        self.is_lost |= now_s - self._heard_s > SILENCE_S
