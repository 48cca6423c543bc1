"""How a run's end is recorded: what ended it, which process may say it first, and whether the run still goes on.

No clocks are compared. An end belongs to this start if it comes after this start's beginning in events.jsonl, the first
end is the first in the file, and whether a run goes on is known from a lock that the kernel drops with its process.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.records import EVENTS_FILE, STEPS_FILE, Event, RecordWriter, StepRecord, read_records

ERROR = "error"
INTERRUPTED = "interrupted"
# The boot id of the host that began the run. On that host the kernel knows who holds a lock; about locks of other hosts
# a file system may say nothing.
BOOT_ID = "boot_id"

# Locked by the rank that reports the cause, until it has done so.
_SPEAKING_FILE = "speaking.lock"
_SPEAKING_LIMIT_S = 5.0
_HOLDING_LIMIT_S = 1.0
_POLL_S = 0.01
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Start:
    """One start of a run. `events_size`: the length of events.jsonl in bytes before this start, so that what comes
    earlier in the file belongs to earlier starts.
    """

    run_dir: Path
    events_size: int

    @classmethod
    def now(cls, run_dir: Path) -> Start:
        return cls(run_dir, _size(run_dir / "records" / EVENTS_FILE))

    @property
    def events_path(self) -> Path:
        return self.run_dir / "records" / EVENTS_FILE

    def events(self) -> Iterator[Event]:
        """The events of this start, in the order in which they were written."""
        return read_records(self.events_path, Event, start=self.events_size)

    def has_end(self) -> bool:
        return cause_among(list(self.events())) is not None

    def write(self, event: Event) -> None:
        """Appends the event. Raises OSError if the run's folder is gone; the folder is not made again."""
        if not self.run_dir.is_dir():
            raise FileNotFoundError(self.run_dir)
        writer = RecordWriter(self.events_path)
        writer.write(event)
        writer.close()

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """A lock that one process of the run holds at a time while it reports the cause. A second one finds the event
        of the first; and because it has to wait, its own end cannot make a launcher kill the first one too early.
        Without locks in the file system, or when the holder hangs, all are let in. Raises OSError if the run's folder
        is gone.
        """
        self.events_path.parent.mkdir(exist_ok=True)
        descriptor = os.open(self.events_path.with_name(_SPEAKING_FILE), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, fcntl.LOCK_EX, _SPEAKING_LIMIT_S)
            yield
        finally:
            os.close(descriptor)


def cause_among(events: Sequence[Event]) -> Event | None:
    """The event that ended the run: `launch`'s if there is one (it has heard of every rank; its `rank` is None), else
    the first of a rank. None if nothing ended it.
    """
    ends = [event for event in events if event.kind in (ERROR, INTERRUPTED)]
    of_launch = [event for event in ends if event.rank is None]
    return of_launch[-1] if of_launch else next(iter(ends), None)


def end_event(kind: str, message: str, rank: int | None, **facts: Any) -> Event:
    """`facts` that are None are left out."""
    return Event(kind, message, rank, time.time(), {name: value for name, value in facts.items() if value is not None})


def interrupted(start: Start, signal_name: str) -> tuple[str, dict[str, Any]]:
    """What is said of a run that a signal ended, 'interrupted at step 9 (SIGINT), which is saved', and the facts of its
    event.
    """
    events = list(start.events())
    step = last_step(start.run_dir) if any(event.kind == "phase" for event in events) else None
    saved = [event.facts["step"] for event in events if event.kind in ("checkpoint", "resume")]
    saved_step = saved[-1] if saved else None
    if step is None:
        message = f"interrupted before the first step ({signal_name})"
    elif saved_step == step:
        message = f"interrupted at step {step} ({signal_name}), which is saved"
    else:
        what = "no step is saved" if saved_step is None else f"the newest checkpoint is that of step {saved_step}"
        message = f"interrupted at step {step} ({signal_name}); {what}"
    return message, {"step": step, "saved_step": saved_step, "signal": signal_name}


def last_step(run_dir: Path) -> int | None:
    """The newest recorded step; None if there is none. Reads only the end of the file."""
    path = run_dir / "records" / STEPS_FILE
    start = max(0, _size(path) - _TAIL_BYTES)
    newest = None
    with suppress(OSError, TypeError):
        for record in read_records(path, StepRecord, start=start):
            newest = record.step
    return newest


def show_life(path: Path) -> dict[str, object]:
    """Locks `path` for as long as this process, or one forked from it, lives, so that readers see that the run goes on.
    Returns facts for the run's start event; none if the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR)
    if _lock(descriptor, fcntl.LOCK_EX, _HOLDING_LIMIT_S):
        # Never closed: the kernel drops the lock when the last process that has the descriptor ends.
        boot = _boot_id()
        return {} if boot is None else {BOOT_ID: boot}
    os.close(descriptor)
    return {}


def is_written(path: Path, start_facts: Mapping[str, Any]) -> bool | None:
    """Whether the run's process lives. None if that cannot be told from here: the run is on another host and the file
    system does not show its locks, or the run never held a lock.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    wrote = start_facts.get(BOOT_ID)
    return False if wrote is not None and wrote == _boot_id() else None


def _boot_id() -> str | None:
    """Identifies one boot of a host; the same in all of its containers."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def _lock(descriptor: int, how: int, limit_s: float) -> bool:
    """Whether the lock was obtained within the limit."""
    deadline_s = time.monotonic() + limit_s
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_POLL_S)
        except OSError:
            return False
        else:
            return True


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
