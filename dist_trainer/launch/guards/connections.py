"""The launching process's sockets: which connections are accepted, and what is received and sent on them.

Anybody may connect, but nothing is trusted before the proof (see `proof`): connections without one are limited in
number and time, and their bytes are not parsed. When no more guards are awaited, the listener is closed.
"""

from __future__ import annotations

import errno
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dist_trainer.launch.guards.proof import LaunchProof, StrangerError
from dist_trainer.launch.guards.protocol import Channel, Message

_BLOCK_BYTES = 1 << 16
# Connections without a proof that are allowed beyond one for each guard still to come.
NUM_SPARE_PLACES = 128
# Less than that, so that a connection that was answered in one turn is not displaced before the next.
_MAX_NUM_ACCEPTED = 64
# A guard needs only a round trip.
PROOF_LIMIT_S = 10.0


@dataclass(eq=False)
class Connection:
    socket: socket.socket
    host: str
    since_s: float
    proof: LaunchProof
    to_send: bytes = b""

    @property
    def channel(self) -> Channel | None:
        """None until the other side has proved itself."""
        return self.proof.channel


class Connections:
    """All connections, served by one thread calling `turn`; `send` and `send_all` may be called from other threads.

    `take` is called with each message of a connection that has proved itself; if it returns False for the first one,
    the connection is closed. `gone` is called when a connection that had been accepted ends.
    """

    def __init__(
        self,
        listener: socket.socket,
        secret: bytes,
        num_awaited: int,
        *,
        take: Callable[[Connection, Message], bool],
        gone: Callable[[Connection], None],
        say: Callable[[str], None],
    ) -> None:
        self.num_strangers = 0
        self._listener, self._secret, self._num_awaited = listener, secret, num_awaited
        self._take, self._gone, self._say = take, gone, say
        self._lock = threading.Lock()
        self._by_fd: dict[int, Connection] = {}
        self._to_flush: set[Connection] = set()
        # Connections without a proof, oldest first. When places are short, those that have greeted are kept longer.
        self._silent: dict[Connection, None] = {}
        self._greeting: dict[Connection, None] = {}
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def __len__(self) -> int:
        return len(self._by_fd)

    def turn(self, wait_s: float) -> None:
        """Waits up to `wait_s` for something to arrive, and handles what has arrived."""
        ready = self._selector.select(wait_s)
        for key, _ in ready:
            # It may have been closed in this very turn, to make room for another.
            if key.data is not None and key.data.socket.fileno() >= 0:
                self._read(key.data)
        if any(key.data is None for key, _ in ready):
            self._accept()

    def send(self, connection: Connection, message: bytes) -> None:
        with self._lock:
            self._add((connection,), message)

    def send_all(self, message: bytes) -> None:
        with self._lock:
            self._add(self._by_fd.values(), message)

    def flush(self) -> None:
        """Sends what is queued, as far as that goes without blocking."""
        with self._lock:
            connections, self._to_flush = self._to_flush, set()
        for connection in connections:
            if connection.socket.fileno() < 0:
                continue
            with self._lock:
                data, connection.to_send = connection.to_send, b""
            try:
                sent = connection.socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._drop(connection)
                continue
            with self._lock:
                connection.to_send = data[sent:] + connection.to_send
                if connection.to_send:
                    self._to_flush.add(connection)

    def send_strangers_away(self) -> None:
        """Closes connections that gave no proof in time; if no guard is awaited, all of them, and the listener."""
        now_s = time.monotonic()
        is_over = self._num_awaited == 0
        if is_over and self._listener.fileno() >= 0:
            self._selector.unregister(self._listener)
            self._listener.close()
        for waiting in (self._silent, self._greeting):
            while (first := next(iter(waiting), None)) and (is_over or now_s - first.since_s > PROOF_LIMIT_S):
                self._drop(first)

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in list(self._by_fd.values()):
            connection.socket.close()
        self._listener.close()
        self._selector.close()

    def _accept(self) -> None:
        """Accepts waiting connections, of which there may be thousands at once."""
        for _ in range(_MAX_NUM_ACCEPTED):
            try:
                accepted, address = self._listener.accept()
            except OSError as error:
                # No descriptor is free: one connection has to go, or accept would fail again and again.
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._send_first_away():
                    continue
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if len(self._silent) + len(self._greeting) >= self._num_awaited + NUM_SPARE_PLACES:
                self._send_first_away()
            connection = Connection(accepted, str(address[0]), time.monotonic(), LaunchProof(self._secret))
            self._silent[connection] = None
            with self._lock:
                self._by_fd[accepted.fileno()] = connection
            self._selector.register(accepted, selectors.EVENT_READ, connection)
            # By now most have sent their greeting.
            self._read(connection)

    def _send_first_away(self) -> bool:
        """Closes the oldest connection without a proof; False if there is none."""
        first = next(iter(self._silent or self._greeting), None)
        if first is not None:
            self._drop(first)
        return first is not None

    def _read(self, connection: Connection) -> None:
        messages: list[Message] = []
        try:
            data = connection.socket.recv(_BLOCK_BYTES)
            if connection.channel is not None:
                messages = connection.channel.feed(data)
            elif data:
                messages = self._prove(connection, data)
        except BlockingIOError:
            return
        except StrangerError:
            self._note_stranger(connection)
            data = b""
        except (OSError, ValueError):
            data = b""
        for message in messages:
            if not self._take(connection, message):
                data = b""
                break
            if connection in self._greeting:
                del self._greeting[connection]
                self._num_awaited -= 1
        if not data:
            self._drop(connection)

    def _prove(self, connection: Connection, data: bytes) -> list[Message]:
        """Advances the proof; returns messages that follow it. Raises StrangerError or ValueError."""
        answer, rest = connection.proof.feed(data)
        if answer:
            with self._lock:
                connection.to_send += answer
                self._to_flush.add(connection)
        if connection.proof.has_greeting and connection in self._silent:
            del self._silent[connection]
            self._greeting[connection] = None
            # Its time limit starts now, however long this thread was busy before.
            connection.since_s = time.monotonic()
        # Until its first message it still occupies a stranger's place; guards send that message at once.
        return connection.channel.feed(rest) if connection.channel is not None else []

    def _note_stranger(self, connection: Connection) -> None:
        self.num_strangers += 1
        if self.num_strangers == 1:
            self._say(f"a connection from {connection.host} did not know this run's secret, and was closed")

    def _drop(self, connection: Connection) -> None:
        with self._lock:
            self._by_fd.pop(connection.socket.fileno(), None)
        self._selector.unregister(connection.socket)
        connection.socket.close()
        was_believed = not (connection in self._silent or connection in self._greeting)
        self._silent.pop(connection, None)
        self._greeting.pop(connection, None)
        if was_believed:
            self._gone(connection)

    def _add(self, connections: Iterable[Connection], message: bytes) -> None:
        """Queues the message for connections with a proof. Under the lock, because sealing numbers the messages."""
        for connection in connections:
            if connection.channel is not None:
                connection.to_send += connection.channel.seal(message)
                self._to_flush.add(connection)
