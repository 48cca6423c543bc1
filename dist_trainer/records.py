"""The records of a run as JSON lines: append-only, one object per line, safe to read while they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from typing_extensions import TypedDict

from dist_trainer.disk import writing
from dist_trainer.encoding import all_as_utf8
from dist_trainer.typed_json import Count, Finite, ReadAs, Seconds, validator

STEPS_FILE = "steps.jsonl"
EVENTS_FILE = "events.jsonl"
# The kind of an event that says why a figure is not known, and the diagnostic after which no more samples come.
MONITOR_EVENT = "monitor"
SAMPLER_FAILED = "sampler failed"
# In place of a stage: the first step has ended, and with it the rank's start.
START_ENDED = "ended"
# How json.dumps in ASCII begins an escaped surrogate.
_SURROGATE = "\\ud"


def memory_file(rank: int) -> str:
    """The file name of one rank's MemoryRecords."""
    return f"memory-rank-{rank}.jsonl"


def host_memory_file(first_rank: int) -> str:
    """The file with the MemoryRecords of all ranks of a host, where one monitor per host writes. `first_rank`: its
    local rank 0.
    """
    return f"memory-host-{first_rank}.jsonl"


def start_file(rank: int) -> str:
    """The file name of one rank's StageRecords."""
    return f"start-rank-{rank}.jsonl"


def samples_file(source: str) -> str:
    """The file name of one source's DeviceSamples: "rank-3", the GPU of a rank; "gpu-0", a GPU that `monitor` watched;
    "host-8", all GPUs of the host whose local rank 0 is rank 8.
    """
    return f"memory-samples-{source}.jsonl"


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step. `loss`: mean over all ranks and micro batches in nats, in double precision."""

    step: Count
    phase: str
    loss: float
    grad_norm: float | None
    learning_rate: float
    loss_scale: float | None
    num_tokens: Count
    tokens_per_s: float
    data_wait_s: Seconds
    step_s: Seconds
    time_s: Seconds


@dataclass(frozen=True)
class MemoryRecord:
    """Peaks of one rank from the start to the end of `step`. A figure that is not available is None.

    `allocator_peaks_bytes`: the CPU allocator's exact peak in each phase (init, forward, backward, step), where it was
    measured. `monotonic_s` and `start_id`: see DeviceSample.
    """

    step: Count
    rank: Count
    host: str
    device: str | None
    allocated_peak_bytes: Count | None
    reserved_peak_bytes: Count | None
    device_used_bytes: Count | None
    rss_bytes: Count
    time_s: Seconds
    monotonic_s: Seconds | None = None
    allocator_peaks_bytes: dict[str, Count] | None = None
    start_id: Count = 0


@dataclass(frozen=True)
class DeviceSample:
    """One sample of a GPU by NVML, and of our processes on it. A field that is not supported or not known is None.

    `used_version`: the version of nvmlDeviceGetMemoryInfo that gave `used_bytes`; version 2 does not count what the
    driver reserves, version 1 does. `process_bytes`: GPU memory of this rank, or of the watched command's process tree;
    `rss_bytes`: their resident set on the host. `ecc_errors`: uncorrected ones since the driver was loaded.
    `xid_errors`: the codes that the driver reported since the previous sample. `rank`: the rank that uses the GPU; None
    for a watched command.

    `time_s` is for people, because the wall clock may be set back. Records of one rank are ordered by `start_id`, which
    identifies the start of the run (the length of events.jsonl before it, in bytes, so that later starts have larger
    ones), then by `monotonic_s`. `phase`: of training, None before the first one. `is_last`: the sampler ended in
    order, and this was its last sample.
    """

    host: str
    device: str | None
    monotonic_s: Seconds
    time_s: Seconds
    used_bytes: Count | None = None
    used_version: int | None = None
    total_bytes: Count | None = None
    process_bytes: Count | None = None
    rss_bytes: Count | None = None
    utilization_percent: int | None = None
    power_w: float | None = None
    temperature_c: int | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    ecc_errors: int | None = None
    xid_errors: tuple[int, ...] | None = None
    rank: Count | None = None
    phase: str | None = None
    start_id: Count = 0
    is_last: bool = False


@dataclass(frozen=True)
class StageRecord:
    """A stage of a rank's start begins, and with it the stage before it ends. The last one is START_ENDED.

    `monotonic_s`: as in DeviceSample; comparable among the processes of one host. `pid`: the rank's process, which
    tells apart two starts of which the first wrote no event, so that both have one `start_id`. `compile_s`: with
    START_ENDED, how much of the stage that ends torch.compile took.
    """

    stage: str
    rank: Count
    host: str
    monotonic_s: Seconds
    start_id: Count
    pid: Count
    compile_s: Seconds | None = None


class KnownFacts(TypedDict, total=False):
    """The facts of events that are read anywhere in this program; an event may have others."""

    __pydantic_config__ = {"extra": "allow"}  # type: ignore[misc]  # noqa: RUF012

    argv: list[Any]
    boot_id: str
    cost_s: Seconds
    device: str | None
    diagnostic: str
    loss: Finite
    monotonic_s: Seconds
    seconds: Seconds
    slurm: dict[str, Any]
    source: str
    start_id: Count
    status: int
    step: Count
    unigram_entropy_nats: Finite | None
    unknown: list[str]
    versions: dict[str, str]
    world_size: Count


@dataclass(frozen=True)
class Event:
    """Something that happened once: 'start', 'phase', 'checkpoint', 'cadence', 'notice', 'error', 'interrupted', 'end'.

    `rank` is None for an event of `launch`.
    """

    kind: str
    message: str
    rank: int | None
    time_s: Seconds
    facts: Annotated[dict[str, Any], ReadAs(KnownFacts)] = field(default_factory=dict)


# File -> number of damaged lines that were left out.
LeftOut = dict[Path, int]
Record = TypeVar("Record", StepRecord, MemoryRecord, DeviceSample, StageRecord, Event)


class RecordWriter:
    """Appends records to one file; each line is written by a single write call. Raises WriteError, an OSError, when the
    disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            size = os.fstat(self._descriptor).st_size
            if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
                # The previous writer was cut off within a line: begin a new one.
                os.write(self._descriptor, b"\n")

    def write(self, record: StepRecord | MemoryRecord | DeviceSample | StageRecord | Event) -> None:
        # The records are flat. asdict would copy them deeply, which takes longer than writing them.
        line = _json(vars(record))
        if _SURROGATE in line:
            # A lone surrogate (from a file's name, or half of a character), which JSON readers refuse.
            line = _json(all_as_utf8(vars(record)))
        data = line.encode() + b"\n"
        with writing(self._path, len(data)):
            # A nearly full disk may take a part of the line; the next write then raises the error.
            while data:
                data = data[os.write(self._descriptor, data) :]

    def is_in_place(self) -> bool:
        """Whether the path still leads to the open file: neither it nor its folder was deleted, moved or replaced."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def close(self) -> None:
        os.close(self._descriptor)


def _json(values: Any) -> str:
    return json.dumps(values, separators=(",", ":"), allow_nan=True)


def read_records(
    path: Path, kind: type[Record], left_out: LeftOut | None = None, *, start: int = 0
) -> Iterator[Record]:
    """Yields the records of a file in its order, from byte `start` on. A last line that is still being written is left
    out, and so are damaged lines, such as one that was cut off before a resumed run wrote on; `left_out` counts those.

    Unknown fields are ignored, so that records of newer versions can be read.
    """
    if not path.exists():
        return
    num_damaged = 0
    validate = validator(kind).validate_json
    with path.open("rb") as lines:
        lines.seek(start)
        for line in lines:
            if not line.endswith(b"\n"):
                break
            try:
                record: Record = validate(line, strict=True)
            except ValueError:
                num_damaged += not line.isspace()
                continue
            yield record
    if left_out is not None and num_damaged:
        left_out[path] = num_damaged


def read_values(path: Path, kind: type[Any], left_out: LeftOut | None = None) -> Iterator[dict[str, Any]]:
    """As `read_records`, but yields the mapping of each record's fields: faster, for files of millions of lines."""
    return map(vars, read_records(path, kind, left_out))


def read_steps(records_dir: Path, left_out: LeftOut | None = None) -> list[StepRecord]:
    """The steps of a run in order; if a resumed run repeated a step, the later record counts."""
    by_step = {record.step: record for record in read_records(records_dir / STEPS_FILE, StepRecord, left_out)}
    return [by_step[step] for step in sorted(by_step)]
