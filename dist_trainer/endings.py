"""How a run's end stands in its records: what ended it, who may say it first, and whether anybody still writes.

Nothing here compares clocks: an end is of this start when it stands behind where this start began, the first is the one
that stands first, and whether a run goes on is what the kernel knows of the lock that it holds.
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
# Which boot of which host began the run. There the kernel knows who holds a lock; of other hosts' locks a file system
# may show nothing.
BOOT_ID = "boot_id"

# Held by the rank that speaks, until it has spoken.
_SPEAKING_FILE = "speaking.lock"
_SPEAKING_LIMIT_S = 5.0
_HOLDING_LIMIT_S = 1.0
_POLL_S = 0.01
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Start:
    """One start of a run. `events_size` is how long events.jsonl was before it, in bytes: what stands there is of
    earlier ones.
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
        """In the order in which they were written."""
        return read_records(self.events_path, Event, start=self.events_size)

    def has_end(self) -> bool:
        return cause_among(list(self.events())) is not None

    def write(self, event: Event) -> None:
        """Appends the event. Raises OSError where the folder is gone: it is not made again."""
        if not self.run_dir.is_dir():
            raise FileNotFoundError(self.run_dir)
        writer = RecordWriter(self.events_path)
        writer.write(event)
        writer.close()

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """While one process of the run is in here no other is, so that who comes second finds what the first has said
        and no launcher ends the first because the second has ended. On a file system without locks, and where somebody
        stands still in it, all are let in. Raises OSError where the folder is gone.
        """
        self.events_path.parent.mkdir(exist_ok=True)
        descriptor = os.open(self.events_path.with_name(_SPEAKING_FILE), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, fcntl.LOCK_EX, _SPEAKING_LIMIT_S)
            yield
        finally:
            os.close(descriptor)


def cause_among(events: Sequence[Event]) -> Event | None:
    """What ended the run: what `launch` says, which has heard of every rank (its events are of no rank), else what a
    rank said first. None where nothing did.
    """
    ends = [event for event in events if event.kind in (ERROR, INTERRUPTED)]
    of_launch = [event for event in ends if event.rank is None]
    return of_launch[-1] if of_launch else next(iter(ends), None)


def end_event(kind: str, message: str, rank: int | None, **facts: Any) -> Event:
    """What is not known (None) is left out."""
    return Event(kind, message, rank, time.time(), {name: value for name, value in facts.items() if value is not None})


def interrupted(signal_name: str, step: int | None) -> str:
    """'interrupted at step 9 (SIGINT)'."""
    return f"interrupted {'before the first step' if step is None else f'at step {step}'} ({signal_name})"


def last_step(run_dir: Path) -> int | None:
    """The newest step that is recorded; None where there is none. Reads the end of the file alone."""
    path = run_dir / "records" / STEPS_FILE
    start = max(0, _size(path) - _TAIL_BYTES)
    newest = None
    with suppress(OSError, TypeError):
        for record in read_records(path, StepRecord, start=start):
            newest = record.step
    return newest


def show_life(path: Path) -> dict[str, object]:
    """Shows readers that the file's run goes on, while this process or one forked from it lives. What the event that
    begins the run says of it; nothing where the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR)
    if _lock(descriptor, fcntl.LOCK_EX, _HOLDING_LIMIT_S):
        # It is never closed: the lock goes with the last process that has it.
        boot = _boot_id()
        return {} if boot is None else {BOOT_ID: boot}
    os.close(descriptor)
    return {}


def is_written(path: Path, start_facts: Mapping[str, Any]) -> bool | None:
    """Whether the process lives that began the run; None where that cannot be told from here: its host is another, and
    the file system shows no locks of others, or it held none.
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
    """One number for each boot of each host, the same in all its containers."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def _lock(descriptor: int, how: int, limit_s: float) -> bool:
    """Whether the lock was had, within the limit."""
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
