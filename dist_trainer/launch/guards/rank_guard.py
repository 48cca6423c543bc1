"""Stands between a launcher and one rank: `python -m dist_trainer.launch.guards.rank_guard HOST:PORT SECRET_SOURCE`.

SECRET_SOURCE says where to find the run's secret, `environment` or a file's path. The guard asks the launching process
what to run, so that arguments and variables arrive literally under any launcher; reports how the rank ended; and ends
the rank when told to, or when the launching process is not heard any more. There is one guard per rank, so it imports
only what it needs and what its rank needs anyway.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import IO

from dist_trainer import blackbox
from dist_trainer.blackbox import BLACKBOX_FD
from dist_trainer.cause import CAUSE_FD
from dist_trainer.cluster.environments import READERS, Place
from dist_trainer.cluster.out_of_memory import KillWatch, own_group
from dist_trainer.encoding import printable, set_up_streams
from dist_trainer.errors import EXIT_FAILURE, EXIT_OK, EXIT_USER_ERROR, UserError
from dist_trainer.launch.guards.connecting import EndedError, connect
from dist_trainer.launch.guards.link import Link
from dist_trainer.launch.guards.protocol import BEAT_S, FROM_SRUN, Message, encode
from dist_trainer.launch.guards.rank_environment import rank_environ
from dist_trainer.launch.guards.rank_output import RankOutput, open_log
from dist_trainer.launch.guards.rank_process import BecomeRank, RankProcess, start_rank
from dist_trainer.launch.hosts.run_secret import RunSecret, take_secret
from dist_trainer.launch.processes import launchers_above, sweep_later
from dist_trainer.launch.supervise import FAILURE_GRACE_S

# If the job has not come after this time, the launching process is still reading files: use the time for imports.
_JOB_IS_READY_S = 0.01
_TOLD_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_MAY_BE_IGNORED = (signal.SIGINT, signal.SIGHUP)
_PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)
_BLOCK_BYTES = 1 << 16


class Guard:
    """One rank from start to end: connects, starts it, watches it, reports its end."""

    def __init__(self, place: Place, address: tuple[str, int], secret: bytes) -> None:
        """Raises UserError or EndedError, see `connect`."""
        self.place = place
        self._parent_pid = os.getppid()
        self._was_told_to_end = False
        self._signals_r, signals_w = socket.socketpair()
        for end in (self._signals_r, signals_w):
            end.setblocking(False)
        signal.set_wakeup_fd(signals_w.fileno(), warn_on_full_buffer=False)
        for number in (*_TOLD_TO_END, *_PASSED_ON, signal.SIGCHLD):
            # Signals that are ignored (nohup, a shell's `&`) stay ignored, for the rank too.
            if number not in _MAY_BE_IGNORED or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        self._signals_w = signals_w
        self._link = Link(*connect(address, secret, told_to_end=self._is_told_to_end))
        if self._was_told_to_end:
            raise EndedError
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._link.socket, selectors.EVENT_READ)
        self._selector.register(self._signals_r, selectors.EVENT_READ)
        self._rank: RankProcess | None = None
        self._output: RankOutput | None = None
        self._run_dir: Path | None = None
        self._blackbox_fd = blackbox.new_memory()
        self._kills = KillWatch(own_group())
        # Problems of this host, to be reported after the rank's last lines.
        self._complaints: list[str] = []
        # Until there is a job there is no rank to wait for.
        self._grace_s = 0.0
        self._kill_at_s: float | None = None
        self._is_echo = False
        self._has_bye = False
        self._failed_to_start = False
        self.must_sweep = False
        self.is_lost = False
        self._link.send(encode("hello", rank=place.rank, local_rank=place.local_rank, host=socket.gethostname()))

    def _is_told_to_end(self) -> bool:
        """Before there is a rank: whether a signal, or the end of the parent, told this process to end."""
        with contextlib.suppress(BlockingIOError):
            if any(number in _TOLD_TO_END for number in self._signals_r.recv(_BLOCK_BYTES)):
                self._was_told_to_end = True
        return self._was_told_to_end or os.getppid() != self._parent_pid

    def run(self) -> int:
        """Returns the rank's exit status, or 128 + N if signal N ended it; without a job, 0 if told to stop, else 1."""
        if not self._selector.select(_JOB_IS_READY_S):
            # Every rank imports this module, and a forked rank then already has it.
            importlib.import_module("dist_trainer.config.resolve")
        while self._rank is None and not (self.is_lost or self._kill_at_s or self._failed_to_start):
            self._turn()
        if self._failed_to_start:
            self._tell_end(EXIT_USER_ERROR)
            return EXIT_USER_ERROR
        if self._rank is None:
            return EXIT_OK if self.must_sweep and not self.is_lost else EXIT_FAILURE
        while (returncode := self._rank.poll()) is None:
            self._turn()
            if self._kill_at_s is not None and time.monotonic() >= self._kill_at_s:
                self._signal_rank(signal.SIGKILL)
        was_killed = returncode == -signal.SIGKILL and self._kill_at_s is None
        # Processes that the rank started and left behind, such as data loader workers.
        self._signal_rank(signal.SIGKILL)
        self._read_output()
        status = 128 - returncode if returncode < 0 else returncode
        self._tell_end(status, why=self._kills.explain() if was_killed else None)
        return status

    def _turn(self) -> None:
        """Waits a moment, and handles what has arrived."""
        for key, _ in self._selector.select(BEAT_S / 2):
            if key.fileobj is self._signals_r:
                self._take_signals()
            elif key.fileobj is self._link.socket:
                for message in self._link.receive():
                    self._obey(message)
            else:
                self._read_output()
        if os.getppid() != self._parent_pid and self._kill_at_s is None:
            self._complaints.append(f"the launcher's process on {socket.gethostname()} was killed")
            self._end_rank(FAILURE_GRACE_S)
        if not self.is_lost:
            self._link.beat()
            if self._link.is_lost:
                self._lose()

    def _take_signals(self) -> None:
        for number in self._signals_r.recv(_BLOCK_BYTES):
            if number in _TOLD_TO_END:
                self._is_echo = True
                self._end_rank(self._grace_s)
            elif number in _PASSED_ON:
                self._signal_rank(signal.Signals(number))

    def _obey(self, message: Message) -> None:
        if message["kind"] == "job":
            self._start(message)
        elif message["kind"] == "stop":
            self._is_echo = True
            self.must_sweep = True
            self._end_rank(self._grace_s)
        elif message["kind"] == "end":
            self._is_echo = True
            self.must_sweep = True
            self._kill_at_s = time.monotonic()
            self._signal_rank(signal.SIGKILL)
        elif message["kind"] == "signal":
            self._signal_rank(signal.Signals(message["number"]))
        elif message["kind"] == "bye":
            self._has_bye = True

    def _start(self, job: Message) -> None:
        self.place = replace(self.place, rank=job["rank"])
        self._grace_s = float(job["grace_s"])
        environ = rank_environ(os.environ, self.place, job)
        if job["finds_port"]:
            self._link.send(encode("port", port=int(environ["MASTER_PORT"])))
        is_first = self.place.rank == 0
        # At a terminal rank 0 draws its own progress bar. Open MPI gives ranks a pseudo terminal even if its own output
        # goes to a file or a pipe, where a bar would be noise.
        is_captured = not (is_first and job["is_local"] and (job["has_terminal"] or not os.isatty(1)))
        log = None
        if job["logs_dir"]:
            self._run_dir = (Path(job["cwd"]) / job["logs_dir"]).parent
            log = open_log(self._run_dir, self.place.rank) if is_captured else None
        causes_fd, cause_fd = os.pipe()
        causes = os.fdopen(causes_fd, "rb", buffering=0)
        try:
            self._rank = start_rank(
                job["argv"],
                job["cwd"],
                environ,
                is_captured=is_captured,
                let_go=lambda: self._let_go(causes, log),
                descriptors={CAUSE_FD: cause_fd, BLACKBOX_FD: self._blackbox_fd},
            )
        except OSError as error:
            self._complaints.append(
                f"{error.filename} is not there on {socket.gethostname()}: every host needs the same folder and Python"
            )
            self._failed_to_start = True
            return
        os.close(cause_fd)
        self._output = RankOutput(
            self._selector, self._rank.stdout, self._rank.stderr, causes, log, self._pass_on if is_first else None
        )

    def _let_go(self, *of_the_rank: IO[bytes] | None) -> None:
        """Called in the fork that continues as the rank."""
        for mine in (self._selector, self._link.socket, self._signals_r, self._signals_w, *of_the_rank):
            if mine is not None:
                mine.close()

    def _read_output(self) -> None:
        if self._output is not None:
            self._output.read()

    def _pass_on(self, text: str, is_error: bool) -> None:
        self._link.send(encode("output", text=text, is_error=is_error))

    def _end_rank(self, grace_s: float) -> None:
        kill_at_s = time.monotonic() + grace_s
        if self._kill_at_s is None:
            self._signal_rank(signal.SIGTERM)
            self._kill_at_s = kill_at_s
        self._kill_at_s = min(self._kill_at_s, kill_at_s)

    def _signal_rank(self, number: signal.Signals) -> None:
        if self._rank is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._rank.pid, number)

    def _lose(self) -> None:
        was_stopped, self.is_lost, self.must_sweep = self.must_sweep, True, True
        self._selector.unregister(self._link.socket)
        # The launcher ends with the launching process, and may already have ended the rank when we notice that.
        if self._rank is not None and self._rank.poll() != 0 and not (was_stopped or self._has_bye):
            self._record_loss()
        self._end_rank(FAILURE_GRACE_S)

    def _record_loss(self) -> None:
        """Rank 0's guard writes the event for all, because the launching process can no longer do so."""
        if self.place.rank != 0 or self._run_dir is None:
            return
        from dist_trainer.endings import ERROR, Start, end_event

        message = "nothing was heard any more from the launching process: it was killed, its host is down, or cut off"
        with contextlib.suppress(OSError):
            Start.now(self._run_dir).write(end_event(ERROR, message, 0))

    def _tell_end(self, status: int, *, why: str | None = None) -> None:
        if self.is_lost:
            return
        told = None if self._output is None else self._output.cause
        lines = [*(self._output.last_lines if self._output else ()), *self._complaints]
        self._link.send(
            encode(
                "ended",
                status=status,
                lines=lines,
                is_echo=self._is_echo,
                why=why,
                cause=None if told is None else told.text,
                may_be_echo=told is not None and told.may_be_echo,
                is_stop=told is not None and told.is_stop,
                doing=self._doing(),
            )
        )
        while not (self._has_bye or self.is_lost):
            self._turn()

    def _doing(self) -> str | None:
        """What the rank was doing when it ended, in words."""
        moment = blackbox.read(self._blackbox_fd)
        return None if moment is None else moment.in_words()


def find_place() -> Place:
    """Raises UserError if no launcher's variables are set."""
    place = next((found for read in READERS if (found := read(os.environ)) is not None), None)
    if place is None:
        raise UserError("no variable says which rank this is", hint="start ranks with ./launch.sh")
    return place


def main(argv: list[str]) -> int:
    set_up_streams()
    host, _, port = argv[0].rpartition(":")
    if host == FROM_SRUN:
        host = os.environ["SLURM_LAUNCH_NODE_IPADDR"]
    above = launchers_above(os.getpid())
    try:
        secret = take_secret(argv[1], os.environ)
        place = find_place()
    except UserError as error:
        return _refuse(error)
    try:
        guard = Guard(place, (host, int(port)), secret.value)
        status = guard.run()
    except (UserError, EndedError) as error:
        _leave(place, secret, above)
        # All ranks of a host would say the same, so local rank 0 says it.
        return _refuse(error) if isinstance(error, UserError) and place.local_rank == 0 else EXIT_FAILURE
    except BecomeRank as rank:
        becoming = rank
    else:
        _leave(place, secret, above if guard.must_sweep else [])
        return status
    becoming.run()
    return EXIT_OK


def _refuse(error: UserError) -> int:
    print(printable(f"dist_trainer: error: {error}"), file=sys.stderr)
    return error.exit_status


def _leave(place: Place, secret: RunSecret, to_sweep: list[tuple[int, int]]) -> None:
    if secret.is_file:
        # We were released (`bye`), so the host's other guards have connected, or the run has ended.
        with contextlib.suppress(OSError):
            Path(secret.source).unlink()
    if place.local_rank == 0:
        sweep_later(to_sweep)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
