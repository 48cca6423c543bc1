"""What is measured, as JSON lines: append-only, one object a line, safe to read while it is written."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic_core import from_json

from dist_trainer.encoding import all_as_utf8

STEPS_FILE = "steps.jsonl"
EVENTS_FILE = "events.jsonl"
# The kind of an event that says what keeps a figure from being known, and the diagnostic after which there are no more.
MONITOR_EVENT = "monitor"
SAMPLER_FAILED = "sampler failed"
# How JSON in ASCII begins to write one.
_SURROGATE = "\\ud"


def memory_file(rank: int) -> str:
    """The MemoryRecords of one rank."""
    return f"memory-rank-{rank}.jsonl"


def host_memory_file(first_rank: int) -> str:
    """The MemoryRecords of all ranks of one host, of a run with a monitor a host. `first_rank` is its local rank 0."""
    return f"memory-host-{first_rank}.jsonl"


def samples_file(source: str) -> str:
    """The DeviceSamples of one source: "rank-3", the GPU of a rank; "gpu-0", a GPU that `monitor` watched; "host-8",
    all GPUs of the host whose local rank 0 is rank 8.
    """
    return f"memory-samples-{source}.jsonl"


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step. `loss` is the mean over all ranks and micro batches, in full precision."""

    step: int
    phase: str
    loss: float
    grad_norm: float | None
    learning_rate: float
    loss_scale: float | None
    num_tokens: int
    tokens_per_s: float
    data_wait_s: float
    step_s: float
    time_s: float


@dataclass(frozen=True)
class MemoryRecord:
    """Peaks on one rank up to the end of `step`. A figure that cannot be had here is None.

    `allocator_peaks_bytes`: the CPU allocator's exact peak by phase (init, forward, backward, step), where it was
    measured.
    """

    step: int
    rank: int
    host: str
    device: str
    allocated_peak_bytes: int | None
    reserved_peak_bytes: int | None
    device_used_bytes: int | None
    rss_bytes: int
    time_s: float
    monotonic_s: float | None = None
    allocator_peaks_bytes: dict[str, int] | None = None


@dataclass(frozen=True)
class DeviceSample:
    """One look at a GPU by NVML, and at the processes of ours on it. What is not supported, or not known, is None.

    `used_version`: the version of nvmlDeviceGetMemoryInfo that gave `used_bytes`; 2 leaves out what the driver
    reserves, 1 does not. `process_bytes`: on the GPU, of this rank or of the watched command's tree. `rss_bytes`: their
    resident set on the host. `ecc_errors`: uncorrected, since the driver was loaded. `xid_errors`: the numbers that the
    driver reported since the sample before. `rank`: whose GPU it is; None for a watched command.
    """

    host: str
    device: str
    monotonic_s: float
    time_s: float
    used_bytes: int | None = None
    used_version: int | None = None
    total_bytes: int | None = None
    process_bytes: int | None = None
    rss_bytes: int | None = None
    utilization_percent: int | None = None
    power_w: float | None = None
    temperature_c: int | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    ecc_errors: int | None = None
    xid_errors: tuple[int, ...] | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Event:
    """Something that happened once: 'start', 'phase', 'checkpoint', 'notice', 'error', 'end'."""

    kind: str
    message: str
    rank: int
    time_s: float
    facts: dict[str, Any] = field(default_factory=dict)


Record = TypeVar("Record", StepRecord, MemoryRecord, DeviceSample, Event)


class RecordWriter:
    """Appends records to one file; each line reaches the file in a single write."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            # A writer before this one was cut off in the middle of a line: ours begins a new one.
            os.write(self._descriptor, b"\n")

    def write(self, record: StepRecord | MemoryRecord | DeviceSample | Event) -> None:
        # The records are flat; asdict would copy them in depth, which costs more than the writing.
        line = _json(vars(record))
        if _SURROGATE in line:
            # Of a file's name, or half of a character: readers of JSON refuse it.
            line = _json(all_as_utf8(vars(record)))
        os.write(self._descriptor, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self._descriptor)


def _json(values: Any) -> str:
    return json.dumps(values, separators=(",", ":"), allow_nan=True)


def read_records(path: Path, kind: type[Record]) -> Iterator[Record]:
    """Yields the records of a file, in file order; a last line still being written is left out, and so is a line
    that was cut off before a resumed run wrote on.

    Fields that this version does not know are ignored, so that newer records can be read.
    """
    names = {known.name for known in dataclasses.fields(kind)}
    for values in read_values(path):
        yield kind(**{name: value for name, value in values.items() if name in names})


def read_values(path: Path) -> Iterator[dict[str, Any]]:
    """As `read_records`, each record as the plain mapping that its line holds: for files of millions of lines."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return
            try:
                # More than twice as fast as json.loads.
                values = from_json(line)
            except ValueError:
                continue
            if isinstance(values, dict):
                yield values


def read_steps(records_dir: Path) -> list[StepRecord]:
    """The steps of a run in order; where a resumed run did a step again, the later record counts."""
    by_step = {record.step: record for record in read_records(records_dir / STEPS_FILE, StepRecord)}
    return [by_step[step] for step in sorted(by_step)]
