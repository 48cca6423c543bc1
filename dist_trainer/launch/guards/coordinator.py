"""The launching process's end of the connections to the guards: hands out the job, and notices the first failure.

A thread of its own serves the connections. `supervise` reads what it has noticed, and ends the launcher.
"""

from __future__ import annotations

import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from dist_trainer.encoding import without_commands
from dist_trainer.launch.guards.connections import Connection, Connections
from dist_trainer.launch.guards.job import Job
from dist_trainer.launch.guards.membership import Membership, Trouble, name_hosts
from dist_trainer.launch.guards.protocol import BEAT_S, SILENCE_S, Message, encode
from dist_trainer.units import counted

_REMIND_S = 30.0
_TICK_S = 0.1
_LOOK_S = 0.05
# The interval until the job is handed out, because all guards wait for it.
_SHORT_TICK_S = 0.01


@dataclass(eq=False)
class _Guard:
    """A guard's first message: its rank and place as the launcher numbers them; and the rank that it was given here."""

    connection: Connection
    launcher_rank: int
    host: str
    local_rank: int
    rank: int | None = None


class Coordinator:
    """Serves the guards on a thread, from `with` on; until `hand_out` they wait. Its fields may be read at any time.

    If `first_host` is given, the launcher's numbers are not used: that host has the first ranks, and the other hosts
    follow in the order of their names, once all guards have come.
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
        self._say, self._first_host, self._start_limit_s = say, first_host, start_limit_s
        self._connections = Connections(
            listener, secret, membership.num_ranks, take=self._take, gone=self._lose, say=say
        )
        self._job: Job | None = None
        self._port: int | None = None
        self._guards: dict[Connection, _Guard] = {}
        self._told_ranks: set[int] = set()
        self._unnumbered: list[_Guard] = []
        self._waiting: list[_Guard] = []
        self._leaving: list[_Guard] = []
        self._stopping = threading.Lock()
        self._ending: Literal["stop", "end"] | None = None
        self._is_closing = False
        self._thread = threading.Thread(target=self._serve, name="coordinator", daemon=True)

    def __enter__(self) -> Coordinator:
        # The main thread waits for signals: the new thread inherits a mask that blocks them all.
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
        """Gives the job to every guard, including those that connect later."""
        self._port = job.master_port if job.is_port_fixed else None
        self._job = job

    @property
    def has_guards(self) -> bool:
        """Whether any guard is connected and was heard recently."""
        now_s = time.monotonic()
        members = list(self.membership.members.values())
        return any(member.is_connected and now_s - member.heard_s < SILENCE_S for member in members)

    def pass_on(self, number: signal.Signals) -> bool:
        """Sends a signal to every rank. False if there are none yet, or some are missing."""
        if self._job is None or not self.membership.is_complete:
            return False
        self._connections.send_all(encode("signal", number=int(number)))
        return True

    def stop(self) -> float:
        """Tells every guard, also one that connects later, to end its rank in good order: SIGTERM, then SIGKILL after
        the job's `grace_s`, which is returned.
        """
        self._tell_to_end("stop")
        return 0.0 if self._job is None else self._job.grace_s

    def end(self) -> None:
        """Tells every guard, also one that connects later, to kill its rank."""
        self._tell_to_end("end")

    def _tell_to_end(self, how: Literal["stop", "end"]) -> None:
        with self._stopping:
            if self._ending is None or (self._ending == "stop" and how == "end"):
                self._ending = how
                self._connections.send_all(encode(how))

    def close(self, limit_s: float) -> None:
        """Ends the thread as soon as every guard has left, at the latest after `limit_s`."""
        deadline_s = time.monotonic() + limit_s
        while self.has_guards and time.monotonic() < deadline_s:
            time.sleep(0.05)
        self._is_closing = True
        self._thread.join()

    def _serve(self) -> None:
        started_s = beaten_s = looked_s = reminded_s = time.monotonic()
        with self._connections:
            while not self._is_closing:
                self._connections.turn(_TICK_S if self._job else _SHORT_TICK_S)
                self._send_jobs()
                self._let_leave()
                self._connections.send_strangers_away()
                now_s = time.monotonic()
                if now_s - beaten_s >= BEAT_S:
                    beaten_s = now_s
                    self._connections.send_all(encode("beat"))
                if now_s - looked_s >= _LOOK_S:
                    # Not in each turn: with thousands of guards it takes time, and each of them causes a turn.
                    looked_s = now_s
                    self._look_for_trouble(now_s, now_s - started_s)
                if not self.membership.is_complete and self.trouble is None and now_s - reminded_s >= _REMIND_S:
                    reminded_s = now_s
                    self._say(f"{now_s - started_s:.0f} s: still waiting for {self._missing()}{self._strangers()}")
                self._connections.flush()

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
        if self.trouble is not None and not self.trouble.is_stop:
            self.end()

    def _missing(self) -> str:
        return name_hosts(self.membership.missing_hosts())

    def _strangers(self) -> str:
        num_strangers = self._connections.num_strangers
        return f"; {counted(num_strangers, 'connection')} did not know this run's secret" if num_strangers else ""

    def _take(self, connection: Connection, message: Message) -> bool:
        guard = self._guards.get(connection)
        if guard is None:
            return self._welcome(connection, message)
        if guard.rank is not None:
            self._hear(guard, guard.rank, message)
        return True

    def _welcome(self, connection: Connection, message: Message) -> bool:
        """Takes a guard's first message; refuses it if its rank is already there."""
        rank = message.get("rank")
        if message.get("kind") != "hello" or not isinstance(rank, int):
            return False
        if not 0 <= rank < self.membership.num_ranks or rank in self._told_ranks:
            return False
        self._told_ranks.add(rank)
        guard = _Guard(connection, rank, str(message.get("host")), int(message.get("local_rank", 0)))
        self._guards[connection] = guard
        self._unnumbered.append(guard)
        self._number_ranks()
        return True

    def _number_ranks(self) -> None:
        """Gives ranks their numbers: at once, or, if their order is decided here, when all have come."""
        if self._first_host is not None:
            if len(self._unnumbered) < self.membership.num_ranks:
                return
            self._unnumbered.sort(key=lambda guard: _order(guard, self._first_host))
        for number, guard in enumerate(self._unnumbered):
            self._join(guard, guard.launcher_rank if self._first_host is None else number)
            self._waiting.append(guard)
        self._unnumbered.clear()

    def _join(self, guard: _Guard, rank: int) -> None:
        guard.rank = rank
        self.membership.joined(rank, guard.host, time.monotonic())

    def _lose(self, connection: Connection) -> None:
        guard = self._guards.pop(connection)
        if guard.rank is None:
            # It has no number of ours yet. Under the launcher's number it can be reported as gone.
            self._unnumbered.remove(guard)
            self._join(guard, guard.launcher_rank)
        assert guard.rank is not None
        self.membership.disconnected(guard.rank, time.monotonic())

    def _hear(self, guard: _Guard, rank: int, message: Message) -> None:
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
                is_stop=message["is_stop"],
                doing=message["doing"],
            )
            self._leaving.append(guard)

    def _let_leave(self) -> None:
        """Releases guards whose ranks have ended, but only when all guards have come or none is awaited any more: the
        first to leave a host removes the secret's file, which the host's other guards need to connect.
        """
        if self._leaving and (self.membership.is_complete or self._ending is not None):
            for guard in self._leaving:
                self._connections.send(guard.connection, encode("bye"))
            self._leaving.clear()

    def _send_jobs(self) -> None:
        """Sends the job to waiting guards; to rank 0's first, if its host has yet to find the rendezvous's port."""
        job = self._job
        if not self._waiting:
            return
        if job is None:
            if self._ending is not None:
                for guard in self._waiting:
                    self._connections.send(guard.connection, encode(self._ending))
                self._waiting.clear()
            return
        is_port_known = job.master_port is None or self._port is not None
        now = [guard for guard in self._waiting if is_port_known or guard.rank == 0]
        self._waiting = [guard for guard in self._waiting if guard not in now]
        for guard in now:
            self._send_job(job, guard)

    def _send_job(self, job: Job, guard: _Guard) -> None:
        assert guard.rank is not None
        host = self.membership.expected_hosts[guard.rank] if self.membership.expected_hosts else ""
        self._connections.send(guard.connection, job.message(guard.rank, host, self._port))
        if self._ending is not None:
            self._connections.send(guard.connection, encode(self._ending))


def _order(guard: _Guard, first_host: str | None) -> tuple[bool, list[tuple[str, int]], int]:
    """The first host, then by name in natural order (node2 before node10), and within a host by local rank."""
    name = [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", guard.host)]
    return guard.host != first_host, name, guard.local_rank
