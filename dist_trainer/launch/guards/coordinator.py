"""The launching process's end of the connections to its ranks' guards: hands out the job, notices what fails first.

A thread of its own serves the connections. What it notices is read by `supervise`, which ends the launcher.

Anybody may connect, and nobody is believed before the proof (see `proof`): strangers have few places, a short time, and
nothing that they send is looked into. Once all guards are there the door is closed.
"""

from __future__ import annotations

import errno
import re
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType

from dist_trainer.encoding import without_commands
from dist_trainer.launch.guards.membership import Membership, Trouble, name_hosts
from dist_trainer.launch.guards.proof import LaunchProof, StrangerError
from dist_trainer.launch.guards.protocol import BEAT_S, SILENCE_S, Channel, Message, encode
from dist_trainer.launch.supervise import FAILURE_GRACE_S

_REMIND_S = 30.0
_TICK_S = 0.1
_LOOK_S = 0.05
# Until the job is there: the guards wait for it.
_SHORT_TICK_S = 0.01
_BLOCK_BYTES = 1 << 16
# Places for those that have not proved themselves, beside one for each guard that is still to come.
NUM_SPARE_PLACES = 128
# Fewer than those, so that who was answered in one turn is still there in the next.
_MAX_NUM_ACCEPTED = 64
# What a guard needs is a round trip.
PROOF_LIMIT_S = 10.0


@dataclass(frozen=True)
class Job:
    """What every rank runs. `env` is added to what the rank's guard has; `host_env` to that of one host's ranks.

    `master_port` is where rank 0's host is to look for a free port first; None leaves the meeting place to the
    launcher. `is_local`: the ranks share this process's output, and where `has_terminal` its terminal.
    """

    argv: tuple[str, ...]
    cwd: str
    env: tuple[tuple[str, str], ...]
    master_addr: str
    master_port: int | None
    is_port_fixed: bool
    logs_dir: str | None
    is_local: bool
    has_terminal: bool = False
    peers: tuple[str, ...] = ()
    local_ranks: tuple[tuple[int, int], ...] = ()
    host_env: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()


@dataclass(frozen=True)
class _Hello:
    """What a guard says first: its rank, as the launcher counts, and where it is."""

    rank: int
    host: str
    local_rank: int


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    host: str
    since_s: float
    proof: LaunchProof
    hello: _Hello | None = None
    rank: int | None = None
    to_send: bytes = b""

    @property
    def channel(self) -> Channel | None:
        return self.proof.channel


class Coordinator:
    """Serves the guards from a thread, from `with` on; until `hand_out` they wait. Read its fields at any time.

    Where a `first_host` is named the launcher's own numbers do not count: that host has the first ranks, and the others
    follow in the order of their names, once all have come.
    """

    def __init__(
        self,
        listener: socket.socket,
        secret: bytes,
        membership: Membership,
        *,
        start_limit_s: float,
        say: Callable[[str], None],
        first_host: str | None = None,
    ) -> None:
        self.membership = membership
        self.trouble: Trouble | None = None
        self._listener, self._secret, self._say = listener, secret, say
        self._first_host = first_host
        self._job: Job | None = None
        self._port: int | None = None
        self._start_limit_s = start_limit_s
        self._lock = threading.Lock()
        self._connections: dict[int, _Connection] = {}
        self._to_flush: set[_Connection] = set()
        # Those without a place of their own, by when they came: who has greeted stays longer where places are short.
        self._silent: dict[_Connection, None] = {}
        self._greeting: dict[_Connection, None] = {}
        self._num_strangers = 0
        self._told_ranks: set[int] = set()
        self._unnumbered: list[tuple[_Hello, _Connection]] = []
        self._waiting: list[_Connection] = []
        self._leaving: list[_Connection] = []
        self._grace_s: float | None = None
        self._is_closing = False
        self._thread = threading.Thread(target=self._serve, name="coordinator", daemon=True)

    def __enter__(self) -> Coordinator:
        # The signals are the main thread's to wait for: the new thread inherits this mask.
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(0.0)

    def hand_out(self, job: Job) -> None:
        """Gives every guard, now and later ones too, its job."""
        self._port = job.master_port if job.is_port_fixed else None
        self._job = job

    @property
    def has_guards(self) -> bool:
        """Whether any guard is connected, and not long silent."""
        now_s = time.monotonic()
        members = list(self.membership.members.values())
        return any(member.is_connected and now_s - member.heard_s < SILENCE_S for member in members)

    def stop(self, grace_s: float) -> None:
        """Tells every guard, now and later ones too, to end its rank: SIGTERM, and SIGKILL `grace_s` later."""
        with self._lock:
            if self._grace_s is None or grace_s < self._grace_s:
                self._grace_s = grace_s
                self._add(self._connections.values(), encode("stop", grace_s=grace_s))

    def close(self, limit_s: float) -> None:
        """Ends the thread as soon as every guard has gone, or at the limit."""
        deadline_s = time.monotonic() + limit_s
        while self.has_guards and time.monotonic() < deadline_s:
            time.sleep(0.05)
        self._is_closing = True
        self._thread.join()

    def _serve(self) -> None:
        started_s = beaten_s = looked_s = reminded_s = time.monotonic()
        self._listener.setblocking(False)
        with selectors.DefaultSelector() as selector, self._listener:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._is_closing:
                ready = selector.select(_TICK_S if self._job else _SHORT_TICK_S)
                for key, _ in ready:
                    # One of them may have lost its place to another.
                    if key.data is not None and key.data.socket.fileno() >= 0:
                        self._read(key.data, selector)
                if any(key.data is None for key, _ in ready):
                    self._accept(selector)
                self._send_jobs()
                self._let_leave()
                now_s = time.monotonic()
                self._send_strangers_away(now_s, selector)
                if now_s - beaten_s >= BEAT_S:
                    beaten_s = now_s
                    self._send_all(encode("beat"))
                if now_s - looked_s >= _LOOK_S:
                    # Takes a moment where there are thousands, who come in as many turns.
                    looked_s = now_s
                    self._look_for_trouble(now_s, now_s - started_s)
                if not self.membership.is_complete and self.trouble is None and now_s - reminded_s >= _REMIND_S:
                    reminded_s = now_s
                    self._say(f"{now_s - started_s:.0f} s: still waiting for {self._missing()}{self._strangers()}")
                self._flush(selector)
            for connection in list(self._connections.values()):
                connection.socket.close()

    def _look_for_trouble(self, now_s: float, since_start_s: float) -> None:
        if self.trouble is not None:
            return
        self.trouble = self.membership.first_trouble(now_s)
        if self.trouble is None and not self.membership.is_complete and since_start_s > self._start_limit_s:
            self.trouble = Trouble(
                f"{self._missing()} did not start within {self._start_limit_s:.0f} s; see --start-limit"
                f"{self._strangers()}",
                1,
            )
        if self.trouble is not None:
            self.stop(FAILURE_GRACE_S)

    def _missing(self) -> str:
        return name_hosts(self.membership.missing_hosts())

    def _strangers(self) -> str:
        return f"; {self._num_strangers} connections did not know this run's secret" if self._num_strangers else ""

    def _accept(self, selector: selectors.BaseSelector) -> None:
        """Those that wait, of whom there may be thousands at once."""
        for _ in range(_MAX_NUM_ACCEPTED):
            num_places = self.membership.num_ranks - len(self._told_ranks) + NUM_SPARE_PLACES
            try:
                accepted, address = self._listener.accept()
            except OSError as error:
                # No file may be opened any more: somebody has to go, or this would be tried again and again.
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._send_first_away(selector):
                    continue
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if len(self._silent) + len(self._greeting) >= num_places:
                self._send_first_away(selector)
            connection = _Connection(accepted, str(address[0]), time.monotonic(), LaunchProof(self._secret))
            self._silent[connection] = None
            with self._lock:
                self._connections[accepted.fileno()] = connection
            selector.register(accepted, selectors.EVENT_READ, connection)
            # Most have greeted by now.
            self._read(connection, selector)

    def _send_first_away(self, selector: selectors.BaseSelector) -> bool:
        """Whoever has been there longest without a proof; False where there is nobody."""
        first = next(iter(self._silent or self._greeting), None)
        if first is not None:
            self._drop(first, selector)
        return first is not None

    def _send_strangers_away(self, now_s: float, selector: selectors.BaseSelector) -> None:
        """Those whose time is over; all, and the listener too, where no guard is awaited any more."""
        is_over = len(self._told_ranks) == self.membership.num_ranks
        if is_over and self._listener.fileno() >= 0:
            selector.unregister(self._listener)
            self._listener.close()
        for waiting in (self._silent, self._greeting):
            while (first := next(iter(waiting), None)) and (is_over or now_s - first.since_s > PROOF_LIMIT_S):
                self._drop(first, selector)

    def _read(self, connection: _Connection, selector: selectors.BaseSelector) -> None:
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
            if connection.hello is None:
                if not self._welcome(connection, message):
                    data = b""
                    break
                self._number_ranks()
            elif connection.rank is not None:
                self._take(connection, connection.rank, message)
        if not data:
            self._drop(connection, selector)

    def _prove(self, connection: _Connection, data: bytes) -> list[Message]:
        """Takes it one step further, and gives what it says behind its proof. Raises StrangerError, ValueError."""
        answer, rest = connection.proof.feed(data)
        if answer:
            with self._lock:
                connection.to_send += answer
                self._to_flush.add(connection)
        if connection.proof.has_greeting and connection in self._silent:
            del self._silent[connection]
            self._greeting[connection] = None
            # Its round trip begins now, however long this thread had no turn.
            connection.since_s = time.monotonic()
        # Before its hello it still has a stranger's place: it is to say it at once.
        return connection.channel.feed(rest) if connection.channel is not None else []

    def _note_stranger(self, connection: _Connection) -> None:
        self._num_strangers += 1
        if self._num_strangers == 1:
            self._say(f"a connection from {connection.host} did not know this run's secret, and was closed")

    def _drop(self, connection: _Connection, selector: selectors.BaseSelector) -> None:
        with self._lock:
            self._connections.pop(connection.socket.fileno(), None)
        self._silent.pop(connection, None)
        self._greeting.pop(connection, None)
        selector.unregister(connection.socket)
        connection.socket.close()
        if connection.hello is not None and connection.rank is None:
            # It has no other number yet, and that it is gone must be noticed.
            self._unnumbered.remove((connection.hello, connection))
            self._join(connection, connection.hello.rank, connection.hello)
        if connection.rank is not None:
            self.membership.disconnected(connection.rank, time.monotonic())

    def _welcome(self, connection: _Connection, message: Message) -> bool:
        """The first message says who it is; a rank that is there already is sent away."""
        rank = message.get("rank")
        if message.get("kind") != "hello" or not isinstance(rank, int):
            return False
        if not 0 <= rank < self.membership.num_ranks or rank in self._told_ranks:
            return False
        self._greeting.pop(connection, None)
        self._told_ranks.add(rank)
        connection.hello = _Hello(rank, str(message.get("host")), int(message.get("local_rank", 0)))
        self._unnumbered.append((connection.hello, connection))
        return True

    def _number_ranks(self) -> None:
        """Gives the ranks their numbers as they come, or all at once where their order is decided here."""
        if self._first_host is not None:
            if len(self._unnumbered) < self.membership.num_ranks:
                return
            self._unnumbered.sort(key=lambda one: _order(one[0], self._first_host))
        for number, (hello, connection) in enumerate(self._unnumbered):
            self._join(connection, hello.rank if self._first_host is None else number, hello)
            self._waiting.append(connection)
        self._unnumbered.clear()

    def _join(self, connection: _Connection, rank: int, hello: _Hello) -> None:
        connection.rank = rank
        self.membership.joined(rank, hello.host, time.monotonic())

    def _take(self, connection: _Connection, rank: int, message: Message) -> None:
        now_s = time.monotonic()
        self.membership.heard(rank, now_s)
        kind = message["kind"]
        if kind == "port":
            self._port = int(message["port"])
        elif kind == "output":
            stream = sys.stderr if message["is_error"] else sys.stdout
            stream.write(without_commands(message["text"]))
            stream.flush()
        elif kind == "ended":
            self.membership.ended(
                rank,
                int(message["status"]),
                now_s,
                lines=message["lines"],
                is_echo=message["is_echo"],
                why=message["why"],
                cause=message["cause"],
                may_be_echo=message["may_be_echo"],
            )
            self._leaving.append(connection)

    def _let_leave(self) -> None:
        """Those whose ranks have ended, once all guards are here or none is awaited any more: who leaves a host takes
        from it what the others there begin with.
        """
        if self._leaving and (self.membership.is_complete or self._grace_s is not None):
            for connection in self._leaving:
                self._send(connection, encode("bye"))
            self._leaving.clear()

    def _send_jobs(self) -> None:
        """To those that wait; where rank 0's host finds the port, to that rank first."""
        job = self._job
        if not self._waiting:
            return
        if job is None:
            if self._grace_s is not None:
                for connection in self._waiting:
                    self._send(connection, encode("stop", grace_s=self._grace_s))
                self._waiting.clear()
            return
        is_port_known = job.master_port is None or self._port is not None
        now = [connection for connection in self._waiting if is_port_known or connection.rank == 0]
        self._waiting = [connection for connection in self._waiting if connection not in now]
        for connection in now:
            self._send_job(job, connection)

    def _send_job(self, job: Job, connection: _Connection) -> None:
        rank = connection.rank
        assert rank is not None
        host = self.membership.expected_hosts[rank] if self.membership.expected_hosts else ""
        local_rank, local_world_size = job.local_ranks[rank] if job.local_ranks else (None, None)
        self._send(
            connection,
            encode(
                "job",
                rank=rank,
                argv=job.argv,
                cwd=job.cwd,
                env=dict(job.env) | dict(dict(job.host_env).get(host, ())),
                local_rank=local_rank,
                local_world_size=local_world_size,
                master_addr=job.master_addr,
                master_port=job.master_port if self._port is None else self._port,
                finds_port=rank == 0 and job.master_port is not None and self._port is None,
                logs_dir=job.logs_dir,
                is_local=job.is_local,
                has_terminal=job.has_terminal,
                peers=job.peers,
            ),
        )
        if self._grace_s is not None:
            self._send(connection, encode("stop", grace_s=self._grace_s))

    def _send(self, connection: _Connection, message: bytes) -> None:
        with self._lock:
            self._add((connection,), message)

    def _send_all(self, message: bytes) -> None:
        with self._lock:
            self._add(self._connections.values(), message)

    def _add(self, connections: Iterable[_Connection], message: bytes) -> None:
        """To what is to be sent, where the other side has proved itself. Messages are numbered: under the lock."""
        for connection in connections:
            if connection.channel is not None:
                connection.to_send += connection.channel.seal(message)
                self._to_flush.add(connection)

    def _flush(self, selector: selectors.BaseSelector) -> None:
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
                self._drop(connection, selector)
                continue
            with self._lock:
                connection.to_send = data[sent:] + connection.to_send
                if connection.to_send:
                    self._to_flush.add(connection)


def _order(hello: _Hello, first_host: str | None) -> tuple[bool, list[tuple[str, int]], int]:
    """The first host, then by name as people count (node2 before node10), and on a host by local rank."""
    name = [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", hello.host)]
    return hello.host != first_host, name, hello.local_rank
