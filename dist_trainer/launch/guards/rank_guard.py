"""Stands between a launcher and one rank: `python -m dist_trainer.launch.guards.rank_guard HOST:PORT SECRET_SOURCE`.

SECRET_SOURCE says where the run's secret is, `environment` or a file: what everybody may read. It asks the launching
process what to run, so that arguments and variables arrive literally whatever the launcher does to them; tells it how
the rank ended; and ends the rank when it is told to, or when nothing is heard of that process any more. Imports no more
than it must, but what its rank goes on with: there is one for every rank.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import IO

from dist_trainer.cause import Cause, read_cause
from dist_trainer.cluster.environments import READERS, Place
from dist_trainer.cluster.out_of_memory import KillWatch, own_group
from dist_trainer.cluster.threads import threads_here
from dist_trainer.encoding import printable, set_up_streams
from dist_trainer.errors import EXIT_FAILURE, EXIT_OK, EXIT_USER_ERROR, UserError
from dist_trainer.launch.guards.connecting import EndedError, connect
from dist_trainer.launch.guards.protocol import BEAT_S, FROM_SRUN, SILENCE_S, Message, encode
from dist_trainer.launch.guards.rank_process import BecomeRank, RankProcess, start_rank
from dist_trainer.launch.hosts.network import interface_towards
from dist_trainer.launch.hosts.ports import first_free_port
from dist_trainer.launch.hosts.run_secret import RunSecret, take_secret
from dist_trainer.launch.processes import launchers_above, sweep_later
from dist_trainer.launch.supervise import FAILURE_GRACE_S, GRACE_S
from dist_trainer.logs import rank_log_path

# Where the job is not there by then, the launching process still reads the files.
_JOB_IS_READY_S = 0.01
_TOLD_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_MAY_BE_IGNORED = (signal.SIGINT, signal.SIGHUP)
_PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)
_NUM_LAST_LINES = 20
_BLOCK_BYTES = 1 << 16


class Guard:
    """One rank's life: connect, start, watch, tell."""

    def __init__(self, place: Place, address: tuple[str, int], secret: bytes) -> None:
        """Raises UserError, EndedError: see `connect`."""
        self.place = place
        self._parent_pid = os.getppid()
        self._was_told_to_end = False
        self._signals_r, signals_w = socket.socketpair()
        for end in (self._signals_r, signals_w):
            end.setblocking(False)
        signal.set_wakeup_fd(signals_w.fileno(), warn_on_full_buffer=False)
        for number in (*_TOLD_TO_END, *_PASSED_ON, signal.SIGCHLD):
            # What nohup and a shell's `&` have ignored stays so, for the rank too.
            if number not in _MAY_BE_IGNORED or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        self._signals_w = signals_w
        self._socket, self._channel = connect(address, secret, told_to_end=self._is_told_to_end)
        if self._was_told_to_end:
            raise EndedError
        self._heard_s = self._beaten_s = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._selector.register(self._signals_r, selectors.EVENT_READ)
        self._rank: RankProcess | None = None
        self._log: IO[bytes] | None = None
        # A character may come in two pieces; whatever else they are, the bytes go on.
        self._decoders = [codecs.getincrementaldecoder("utf-8")(errors="surrogateescape") for _ in range(2)]
        # What the rank says why it ends: read to its end only then.
        self._causes: IO[bytes] | None = None
        self._told = b""
        self._run_dir: Path | None = None
        self._kills = KillWatch(own_group())
        self._last_lines: deque[str] = deque(maxlen=_NUM_LAST_LINES)
        self._kill_at_s: float | None = None
        self._is_echo = False
        self._has_bye = False
        self._failed_to_start = False
        self.must_sweep = False
        self.is_lost = False
        self._send(encode("hello", rank=place.rank, local_rank=place.local_rank, host=socket.gethostname()))

    def _is_told_to_end(self) -> bool:
        """Before there is anything to end: by a signal, or by the end of what started this."""
        with contextlib.suppress(BlockingIOError):
            if any(number in _TOLD_TO_END for number in self._signals_r.recv(_BLOCK_BYTES)):
                self._was_told_to_end = True
        return self._was_told_to_end or os.getppid() != self._parent_pid

    def run(self) -> int:
        """The rank's exit status, 128 + N when signal N ended it; without a job 0 when told that none comes, else 1."""
        if not self._selector.select(_JOB_IS_READY_S):
            # Every rank brings it in; a fork has it then.
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
        # What the rank started and left behind, such as loader workers.
        self._signal_rank(signal.SIGKILL)
        self._read_all_output()
        status = 128 - returncode if returncode < 0 else returncode
        self._tell_end(status, why=self._kills.explain() if was_killed else None)
        return status

    def _turn(self) -> None:
        """Waits a moment, and does what came up."""
        for key, _ in self._selector.select(BEAT_S / 2):
            if key.fileobj is self._signals_r:
                self._take_signals()
            elif key.fileobj is self._socket:
                self._read_messages()
            else:
                self._read_all_output()
        if os.getppid() != self._parent_pid and self._kill_at_s is None:
            self._last_lines.append(f"the launcher's process on {socket.gethostname()} was killed")
            self._end_rank(FAILURE_GRACE_S)
        now_s = time.monotonic()
        if self.is_lost:
            return
        if now_s - self._beaten_s >= BEAT_S:
            self._beaten_s = now_s
            self._send(encode("beat"))
        if now_s - self._heard_s > SILENCE_S:
            self._lose()

    def _take_signals(self) -> None:
        for number in self._signals_r.recv(_BLOCK_BYTES):
            if number in _TOLD_TO_END:
                self._is_echo = True
                self._end_rank(GRACE_S)
            elif number in _PASSED_ON:
                self._signal_rank(signal.Signals(number))

    def _read_messages(self) -> None:
        try:
            data = self._socket.recv(_BLOCK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        self._heard_s = time.monotonic()
        try:
            messages = self._channel.feed(data)
        except ValueError:
            # Somebody between the two has changed what was said.
            self._lose()
            return
        for message in messages:
            if message["kind"] == "job":
                self._start(message)
            elif message["kind"] == "stop":
                self._is_echo = True
                self.must_sweep = True
                self._end_rank(float(message["grace_s"]))
            elif message["kind"] == "bye":
                self._has_bye = True

    def _start(self, job: Message) -> None:
        self.place = replace(self.place, rank=job["rank"])
        environ = {**os.environ, **job["env"], **self._place_env(job)}
        if "OMP_NUM_THREADS" not in job["env"]:
            environ["OMP_NUM_THREADS"] = str(threads_here(environ, int(environ["LOCAL_WORLD_SIZE"])))
        if job["finds_port"]:
            environ["MASTER_PORT"] = str(first_free_port(int(job["master_port"])))
            self._send(encode("port", port=int(environ["MASTER_PORT"])))
        if job["peers"] and "GLOO_SOCKET_IFNAME" not in environ:
            environ.update(_interface_env(job["peers"], environ))
        # At the terminal rank 0 shows its progress itself. Open MPI gives it one also where there is none: what goes to
        # a file or a pipe there must not become a bar.
        is_shown = job["is_local"] and (job["has_terminal"] or not os.isatty(1))
        is_captured = not (is_shown and self.place.rank == 0)
        if job["logs_dir"]:
            logs_dir = Path(job["cwd"]) / job["logs_dir"]
            self._run_dir = logs_dir.parent
            self._log = _open_log(logs_dir, self.place.rank) if is_captured else None
        causes_fd, cause_fd = os.pipe()
        self._causes = os.fdopen(causes_fd, "rb", buffering=0)
        try:
            self._rank = start_rank(
                job["argv"], job["cwd"], environ, is_captured=is_captured, let_go=self._let_go, cause_fd=cause_fd
            )
        except OSError as error:
            self._last_lines.append(
                f"{error.filename} is not there on {socket.gethostname()}: every host needs the same folder and Python"
            )
            self._failed_to_start = True
            return
        os.close(cause_fd)
        for pipe in (self._rank.stdout, self._rank.stderr, self._causes):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                self._selector.register(pipe, selectors.EVENT_READ)

    def _let_go(self) -> None:
        """In the fork that goes on as the rank."""
        for mine in (self._selector, self._socket, self._signals_r, self._signals_w, self._log, self._causes):
            if mine is not None:
                mine.close()

    def _place_env(self, job: Message) -> dict[str, str]:
        place = self.place
        local_rank = place.local_rank if job["local_rank"] is None else job["local_rank"]
        local_world_size = place.local_world_size if job["local_world_size"] is None else job["local_world_size"]
        pairs = {
            "RANK": str(place.rank),
            "WORLD_SIZE": str(place.world_size),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(local_world_size),
        }
        if job["master_port"] is not None:
            pairs |= {"MASTER_ADDR": job["master_addr"], "MASTER_PORT": str(job["master_port"])}
        return pairs

    def _read_output(self, pipe: IO[bytes], *, is_error: bool) -> None:
        """What there is to read: to the log, and to the launching process now (rank 0) or at a bad end (others)."""
        while data := pipe.read(_BLOCK_BYTES):
            if self._log is not None:
                with contextlib.suppress(OSError):
                    self._log.write(data)
            text = self._decoders[is_error].decode(data)
            if self.place.rank == 0:
                self._send(encode("output", text=text, is_error=is_error))
            else:
                self._last_lines.extend(text.splitlines())
        if data == b"":
            with contextlib.suppress(KeyError):
                self._selector.unregister(pipe)

    def _read_cause(self, pipe: IO[bytes]) -> None:
        while data := pipe.read(_BLOCK_BYTES):
            self._told += data
        if data == b"":
            with contextlib.suppress(KeyError):
                self._selector.unregister(pipe)

    def _cause(self) -> Cause | None:
        """The first one that the rank has told."""
        return read_cause(self._told.partition(b"\n")[0])

    def _read_all_output(self) -> None:
        assert self._rank is not None
        if self._causes is not None:
            self._read_cause(self._causes)
        for pipe in (self._rank.stdout, self._rank.stderr):
            if pipe is not None:
                self._read_output(pipe, is_error=pipe is self._rank.stderr)

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
        if not self.is_lost:
            was_stopped, self.is_lost, self.must_sweep = self.must_sweep, True, True
            self._selector.unregister(self._socket)
            # The launcher, which ends with the launching process, may have ended the rank before that is noticed here.
            if self._rank is not None and self._rank.poll() != 0 and not (was_stopped or self._has_bye):
                self._record_loss()
            self._end_rank(FAILURE_GRACE_S)

    def _record_loss(self) -> None:
        """One guard, rank 0's, writes it for all: of the launching process nobody else is left."""
        if self.place.rank != 0 or self._run_dir is None:
            return
        from dist_trainer.endings import ERROR, Start, end_event

        message = "nothing was heard any more from the launching process: it was killed, its host is down, or cut off"
        with contextlib.suppress(OSError):
            Start.now(self._run_dir).write(end_event(ERROR, message, 0))

    def _tell_end(self, status: int, *, why: str | None = None) -> None:
        if self.is_lost:
            return
        told = self._cause()
        self._send(
            encode(
                "ended",
                status=status,
                lines=list(self._last_lines),
                is_echo=self._is_echo,
                why=why,
                cause=None if told is None else told.text,
                may_be_echo=told is not None and told.may_be_echo,
            )
        )
        while not (self._has_bye or self.is_lost):
            self._turn()

    def _send(self, message: bytes) -> None:
        """Small, and rare: it may wait a moment for the other side."""
        if self.is_lost:
            return
        try:
            self._socket.settimeout(SILENCE_S)
            self._socket.sendall(self._channel.seal(message))
        except OSError:
            self._lose()
        finally:
            self._socket.setblocking(False)


def _interface_env(peers: list[str], environ: dict[str, str]) -> dict[str, str]:
    """The interface by which the other hosts are reached, for gloo and for NCCL unless the user has named one."""
    own = socket.gethostname()
    other = next((peer for peer in peers if own not in (peer, peer.split(".")[0])), peers[0])
    interface = interface_towards(other)
    if interface in (None, "lo"):
        return {}
    return {name: environ.get(name) or str(interface) for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}


def _open_log(logs_dir: Path, rank: int) -> IO[bytes] | None:
    path = rank_log_path(logs_dir.parent, rank)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)
    return None


def find_place() -> Place:
    """Raises UserError where no launcher's variables are there."""
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
        # All ranks of a host would say the same.
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
        # It was let go: the host's others are here already, or the run has ended.
        with contextlib.suppress(OSError):
            Path(secret.source).unlink()
    if place.local_rank == 0:
        sweep_later(to_sweep)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
