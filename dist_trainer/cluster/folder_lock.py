"""One run, one folder: who writes into a run's folder locks it. A second run is refused and told who holds the lock.

There are two locks. "launch" is held by the process that starts ranks (`launch`, `monitor`), "ranks" by rank 0 under
any launcher, because ranks outlive a launcher that was killed by some seconds. Each has two files in RUN_DIR/lock: one
that the holder has locked, and one that names the holder.

The lock is a POSIX record lock: it works over NFS, is not inherited by forked children, and ends with its process, so
that a killed run leaves nothing locked. On a file system without locks, or with locks that other hosts do not see, the
second file decides: for a holder on this host, whether that very process still runs; for one on another host, whether
it still touches the file (a heartbeat). No clocks are compared.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from dist_trainer.cache import write_whole
from dist_trainer.cluster.process_table import started_ticks
from dist_trainer.disk import cannot_write
from dist_trainer.errors import UserError

Part = Literal["launch", "ranks"]

LOCK_DIR = "lock"
BEAT_S = 1.0
# Longer than NFS caches a file's times, and than a busy host may keep the heartbeat's thread waiting.
WATCH_S = 8.0
# When a launch is killed, its guards notice after 10 s and end their ranks within 5 s.
ORPHANS_S = 20.0
_POLL_S = 0.25
_SAID_AFTER_S = 1.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. `since` is for people. `file` is the lock file's inode: a copy of the folder has another one.

    `started_ticks` count from that host's boot; with the process id they identify one process of one PID namespace.
    """

    part: Part
    host: str
    boot_id: str
    pid_namespace: int
    pid: int
    started_ticks: int
    since: str
    launch_id: str | None
    file: int

    def __str__(self) -> str:
        who = "`launch` or `monitor`" if self.part == "launch" else "rank 0"
        return f"{who} on {self.host}, process {self.pid}, since {self.since}"

    @property
    def runs_here(self) -> bool:
        return started_ticks(self.pid) == self.started_ticks


class FolderLock:
    """One of a folder's two locks, held by this process until `release`, the end of `with`, or the process's end."""

    def __init__(self, run_dir: Path, part: Part, *, launch_id: str | None = None, say: Say | None = None) -> None:
        """Raises UserError, having changed nothing, if another run holds the folder. To find that out it may watch the
        holder's heartbeat for some seconds. `launch_id` identifies the launch; its ranks have it in their environment.
        """
        self._locked = _LockFile(run_dir, part, say)
        try:
            self._locked.take(launch_id)
            other = _LockFile(run_dir, "ranks" if part == "launch" else "launch", say)
            with other:
                if part == "launch":
                    other.wait_for_orphans()
                else:
                    other.require_free_or_of(launch_id)
        except BaseException:
            self._locked.release()
            raise
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="folder-lock", daemon=True)
        # The heartbeat's thread must take no signals, which other threads wait for.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def release(self) -> None:
        """May be called more than once."""
        self._has_ended.set()
        self._thread.join()
        self._locked.release()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._has_ended.wait(BEAT_S):
            # If the folder was deleted, the writers of its files report that.
            with suppress(OSError):
                os.utime(self._locked.holder_path)


class _LockFile:
    """The two files of one lock. `with` closes the files that it opened, and thereby releases what it locked."""

    def __init__(self, run_dir: Path, part: Part, say: Say | None) -> None:
        self._run_dir = run_dir
        self._part = part
        self._say = say or (lambda text: None)
        folder = run_dir / LOCK_DIR
        self.holder_path = folder / f"{part}.json"
        self._is_mine = False
        try:
            folder.mkdir(exist_ok=True)
            self._descriptor = os.open(folder / part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._cannot(error) from error

    def __enter__(self) -> _LockFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        if self._is_mine:
            self._is_mine = False
            with suppress(OSError):
                self.holder_path.unlink()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def take(self, launch_id: str | None) -> None:
        """Locks the file and names this process in it. Raises UserError if another process holds the lock."""
        living = self._living()
        if living is not None:
            raise self._held_by(living)
        me = _this_process(self._part, launch_id, os.fstat(self._descriptor).st_ino)
        try:
            write_whole(self.holder_path, json.dumps(dataclasses.asdict(me), indent=2) + "\n")
        except OSError as error:
            raise self._cannot(error) from error
        self._is_mine = True

    def require_free_or_of(self, launch_id: str | None) -> None:
        """Raises UserError if another launch than this one holds the lock."""
        holder = self._read()
        if holder is not None and launch_id is not None and holder.launch_id == launch_id:
            return
        living = self._living()
        if living is not None:
            raise self._held_by(living)

    def wait_for_orphans(self) -> None:
        """Waits for the ranks of a killed launch to end. Raises UserError for ranks that no launch started."""
        begun_s, is_said = time.monotonic(), False
        while (living := self._living()) is not None:
            waited_s = time.monotonic() - begun_s
            if isinstance(living, Holder) and (living.launch_id is None or waited_s >= ORPHANS_S):
                raise self._held_by(living)
            if waited_s >= _SAID_AFTER_S and not is_said:
                is_said = True
                self._say(f"the ranks of a launch that was killed still run ({living}): waiting for their end")
            if waited_s >= ORPHANS_S:
                raise self._held_by(living)
            time.sleep(_POLL_S)

    def _living(self) -> Holder | str | None:
        """The holder, as far as it is known; None if nobody holds the lock or the holder is dead."""
        is_locked = self._lock()
        holder = self._read()
        if is_locked is False:
            # A holder that has locked the file just now may not have written its name yet.
            for _ in range(4):
                if holder is not None:
                    break
                time.sleep(_POLL_S)
                holder = self._read()
            return holder or "a process that does not say its name"
        if holder is None or holder.file != os.fstat(self._descriptor).st_ino:
            return None
        return holder if self._is_alive(holder, has_lock=is_locked is True) else None

    def _lock(self) -> bool | None:
        """True if this process has the lock now, False if another has it, None if the file system has no locks."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise self._cannot(error) from error
        return True

    def _is_alive(self, holder: Holder, *, has_lock: bool) -> bool:
        if holder.boot_id == _boot_id():
            if holder.pid_namespace == _pid_namespace():
                return holder.runs_here
            # Another container on this host: the same kernel keeps both containers' locks, so a live holder would show.
            return not has_lock and self._is_touched(holder)
        # Imported here because psutil takes longer to load than everything else in this module.
        from dist_trainer.cluster.filesystem import is_of_one_host

        if has_lock and is_of_one_host(self._run_dir):
            return False
        return self._is_touched(holder)

    def _is_touched(self, holder: Holder) -> bool:
        self._say(f"the folder was held by {holder}; watching for {WATCH_S:g} s whether that still lives")
        first, deadline_s = self._seen(), time.monotonic() + WATCH_S
        while time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
            now = self._seen()
            if now != first:
                return now is not None
        return False

    def _seen(self) -> tuple[int, int] | None:
        """A value that changes with every heartbeat. The file is opened because NFS revalidates its times only then."""
        try:
            descriptor = os.open(self.holder_path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            facts = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        return facts.st_ino, facts.st_mtime_ns

    def _read(self) -> Holder | None:
        """The holder that the file names; None if it names none, or cannot be parsed."""
        try:
            values = json.loads(self.holder_path.read_bytes())
            holder = Holder(**{one.name: values[one.name] for one in dataclasses.fields(Holder)})
            texts, numbers = (holder.host, holder.boot_id, holder.since), (holder.pid, holder.started_ticks)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        is_sound = all(isinstance(one, str) for one in texts) and all(isinstance(one, int) for one in numbers)
        return holder if is_sound and 0 < holder.pid < 2**31 else None

    def _held_by(self, holder: Holder | str) -> UserError:
        return UserError(
            f"Another run writes into this folder: {holder}.",
            where=str(self._run_dir),
            hint="wait for its end, end it, or name another folder",
        )

    def _cannot(self, error: OSError) -> UserError:
        return cannot_write("The run's folder cannot be locked", error, self._run_dir / LOCK_DIR)


def _this_process(part: Part, launch_id: str | None, file: int) -> Holder:
    pid = os.getpid()
    return Holder(
        part=part,
        host=socket.gethostname(),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        pid=pid,
        started_ticks=started_ticks(pid) or 0,
        since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        launch_id=launch_id,
        file=file,
    )


def _boot_id() -> str:
    """Identifies one boot of one machine; the containers on it share it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _pid_namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0
