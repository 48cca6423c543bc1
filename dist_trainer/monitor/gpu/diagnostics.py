"""Why a figure is not known: reported as an event, once for each kind and device, and never a reason to stop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dist_trainer.records import EVENTS_FILE, MONITOR_EVENT, Event, RecordWriter

LIBRARY_MISSING = "library missing"
DRIVER_NOT_LOADED = "driver not loaded"
NO_PERMISSION = "no permission"
GPU_LOST = "gpu lost"
DEVICE_NOT_FOUND = "device not found"
INITIALISED_AGAIN = "initialised again"
UNKNOWN_ERROR = "unknown error"
PROCESSES_NOT_VISIBLE = "own processes not visible"
PROCESS_BYTES_NOT_REPORTED = "process bytes not reported"
MIG = "mig"
DEVICES_UNKNOWN = "visible devices unknown"
XID = "xid"

# The fields that are unknown when a device cannot be read at all.
MEMORY_FIELDS = ("used_bytes", "process_bytes")


@dataclass(frozen=True)
class Diagnostic:
    """One thing that went wrong. `unknown`: the fields of DeviceSample that are None because of it."""

    kind: str
    message: str
    device: str | None = None
    unknown: tuple[str, ...] = ()
    call: str | None = None
    code: int | None = None

    def about(self, device: str | None, unknown: tuple[str, ...], *, message: str | None = None) -> Diagnostic:
        """The same diagnostic for this device and these unknown fields."""
        return replace(self, device=device, unknown=unknown, message=message or self.message)


Say = Callable[[Diagnostic], None]


class DiagnosticLog:
    """Appends each diagnostic to events.jsonl as an event of kind "monitor", once for each kind, device and Xid code.

    The events bear `rank` and `start_id`, and name `source`, the series of samples that they are about.
    """

    def __init__(self, records_dir: Path, *, rank: int, source: str, start_id: int = 0) -> None:
        self._path = records_dir / EVENTS_FILE
        self._rank = rank
        self._source = source
        self._start_id = start_id
        self._said: set[tuple[str, str | None, int | None]] = set()

    def say(self, diagnostic: Diagnostic) -> None:
        """Appends the event, unless it was appended before. A failing disk is ignored."""
        key = (diagnostic.kind, diagnostic.device, diagnostic.code if diagnostic.kind == XID else None)
        if key in self._said:
            return
        self._said.add(key)
        facts = {
            "diagnostic": diagnostic.kind,
            "source": self._source,
            "device": diagnostic.device,
            "unknown": list(diagnostic.unknown),
            "call": diagnostic.call,
            "code": diagnostic.code,
            "pid": os.getpid(),
            "monotonic_s": time.monotonic(),
            "start_id": self._start_id,
        }
        # A full disk must stop neither the training nor the sampling, which keeps its peaks in memory.
        with suppress(OSError):
            writer = RecordWriter(self._path)
            writer.write(Event(MONITOR_EVENT, diagnostic.message, self._rank, time.time(), facts))
            writer.close()
