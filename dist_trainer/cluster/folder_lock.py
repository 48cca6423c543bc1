"""One run, one folder: whoever writes into a run's folder holds it, and a second one is refused and told who that is.

What starts ranks (`launch`, `monitor`) holds it as "launch", rank 0 as "ranks", whatever started it: ranks outlive a
launcher that was killed by some seconds. Each part has two files in RUN_DIR/lock: one that the holder's process has
locked, and one that says who it is. The lock is the kernel's, and ends with the process, so a run that was killed
leaves nothing behind. It is POSIX's kind: that one works over NFS too, and is not inherited by forked children. Where a
file system has no locks, or has them on each host apart, what the other file says decides: of this host, whether that
very process still runs; of another, whether the file is still being touched. No clocks are compared.
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
# Beyond what NFS keeps a file's times for, and a writer that the machine did not let run.
WATCH_S = 8.0
# Guards end the ranks of a launch that was killed after 10 s, and within 5.
ORPHANS_S = 20.0
_POLL_S = 0.25
_SAID_AFTER_S = 1.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Holder:
    """Who holds a part. `since` is for people. `file` is the lock file's inode: in a copied folder it is another.

    `started_ticks` are since the boot of that host; with the process id, they name one process of one PID namespace.
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
    """A part of a folder that this process holds, until `release`, the end of `with`, or its own end."""

    def __init__(self, run_dir: Path, part: Part, *, launch_id: str | None = None, say: Say | None = None) -> None:
        """Raises UserError, having changed nothing, where another run holds the folder; may watch it for some seconds
        to know that. `launch_id` is the launch's own, which its ranks know it by.
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
        # The thread is to take no signal: others wait for those.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def release(self) -> None:
        """May be called again."""
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
            # A folder that was deleted is for those to say who write into it.
            with suppress(OSError):
                os.utime(self._locked.holder_path)


class _LockFile:
    """The two files of one part. `with` closes what it has opened, and so lets go what it has locked."""

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
        """Raises UserError where another process has it."""
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
        """Raises UserError where another launch than this one has it."""
        holder = self._read()
        if holder is not None and launch_id is not None and holder.launch_id == launch_id:
            return
        living = self._living()
        if living is not None:
            raise self._held_by(living)

    def wait_for_orphans(self) -> None:
        """Until ranks whose launch was killed have ended too. Raises UserError for ranks that no launch started."""
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
        """Who has it, as far as that is known; None where nobody has, or whoever had it is dead."""
        is_locked = self._lock()
        holder = self._read()
        if is_locked is False:
            # Whoever has only just locked it has not said yet who that is.
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
        """Whether it is this process's now; None where the file system has no locks."""
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
            # A kernel has the locks of all its containers.
            return not has_lock and self._is_touched(holder)
        # Only now: psutil takes longer than all else here.
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
        """Changes with every beat. NFS asks its server anew only for a file that is opened anew."""
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
        """None where nothing is said, or nothing that could be understood."""
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
    """Of one boot of one machine; containers on it share it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _pid_namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0
