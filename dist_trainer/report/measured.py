"""What each GPU, or each rank on a CPU, held over a run: its peaks, and a curve in bounded room.

The files may hold millions of lines: they are read once, a line at a time, and no line becomes an object.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dist_trainer.memory.targets import CPU, Measured
from dist_trainer.records import MONITOR_EVENT, SAMPLER_FAILED, Event, memory_file, read_values, samples_file
from dist_trainer.report.envelope import Envelope

CURVE_WIDTH_S = 0.05
# A rank's samples end this long before the run does where all is well: it waits for the others.
QUIET_END_S = 60.0


@dataclass
class History:
    """One source. `curve` is NVML's use over time, or the resident set where `is_resident`; `phase_peaks` are its
    highest values from each of the run's marks on.
    """

    measured: Measured
    curve: Envelope
    is_resident: bool
    phase_peaks: tuple[int | None, ...]
    last_s: float | None


@dataclass
class _Peaks:
    """What is gathered over the files of one source."""

    origin_s: float
    marks_s: Sequence[float]
    host: str = ""
    device: str = CPU
    highest: dict[str, int] = field(default_factory=dict)
    used_version: int | None = None
    device_bytes: int | None = None
    allocator: dict[str, int] | None = None
    last_s: float | None = None
    last_used_s: float | None = None
    used: Envelope = field(init=False)
    resident: Envelope = field(init=False)
    used_peaks: list[int | None] = field(init=False)
    resident_peaks: list[int | None] = field(init=False)

    def __post_init__(self) -> None:
        self.used = Envelope(origin=self.origin_s, width=CURVE_WIDTH_S)
        self.resident = Envelope(origin=self.origin_s, width=CURVE_WIDTH_S)
        self.used_peaks = [None] * (len(self.marks_s) + 1)
        self.resident_peaks = [None] * (len(self.marks_s) + 1)


def read_histories(
    records_dir: Path, events: Sequence[Event], *, marks_s: Sequence[float] = (), ended_s: float | None = None
) -> list[History]:
    """Every source with a file in the folder, ranks in order. `marks_s` are the moments at which phases begin, in
    order; `ended_s` is when the run ended, None while it goes on.
    """
    sources = _sources(records_dir)
    origin_s = _origin(records_dir, sources, events)
    return [
        _history(records_dir, source, rank, events, origin_s=origin_s, marks_s=marks_s, ended_s=ended_s)
        for source, rank in sources
    ]


def _sources(records_dir: Path) -> list[tuple[str, int | None]]:
    ranks: set[int] = set()
    others: set[tuple[str, int]] = set()
    for path in records_dir.glob("memory-*.jsonl"):
        name = path.name.removeprefix("memory-").removesuffix(".jsonl").removeprefix("samples-")
        found = re.fullmatch(r"(.*?)-?(\d*)", name)
        if found is None:
            continue
        kind, number = found.group(1), int(found.group(2) or 0)
        if kind == "rank":
            ranks.add(number)
        else:
            others.add((name, number))
    in_order = sorted(others, key=lambda other: (other[0].rstrip("0123456789"), other[1]))
    return [*((f"rank-{rank}", rank) for rank in sorted(ranks)), *((name, None) for name, _ in in_order)]


def _origin(records_dir: Path, sources: Iterable[tuple[str, int | None]], events: Sequence[Event]) -> float:
    """One for all curves, so that they can be joined."""
    firsts = [event.time_s for event in events if event.kind == "start"][:1]
    for source, rank in sources:
        for path in _files(records_dir, source, rank):
            first = next(read_values(path), None)
            if first is not None:
                firsts.append(first["time_s"])
    return min(firsts, default=0.0)


def _files(records_dir: Path, source: str, rank: int | None) -> list[Path]:
    files = [records_dir / samples_file(source)]
    return files if rank is None else [*files, records_dir / memory_file(rank)]


def _history(
    records_dir: Path,
    source: str,
    rank: int | None,
    events: Sequence[Event],
    *,
    origin_s: float,
    marks_s: Sequence[float],
    ended_s: float | None,
) -> History:
    peaks = _Peaks(origin_s, marks_s)
    is_sampled = _read_samples(records_dir / samples_file(source), peaks)
    if rank is not None:
        _read_memory(records_dir / memory_file(rank), peaks, draws=not is_sampled)
    used_bytes = peaks.highest.get("used_bytes")
    is_resident = used_bytes is None
    measured = Measured(
        source=source,
        rank=rank,
        host=peaks.host,
        device=peaks.device,
        used_bytes=used_bytes,
        used_version=peaks.used_version,
        device_bytes=peaks.device_bytes,
        process_bytes=peaks.highest.get("process_bytes"),
        allocated_bytes=peaks.highest.get("allocated_peak_bytes"),
        reserved_bytes=peaks.highest.get("reserved_peak_bytes"),
        allocator_bytes=peaks.allocator,
        resident_bytes=peaks.highest.get("rss_bytes"),
        is_sampled=is_sampled,
        unknown=_unknown(source, peaks, events, is_sampled=is_sampled, ended_s=ended_s),
    )
    return History(
        measured,
        curve=peaks.resident if is_resident else peaks.used,
        is_resident=is_resident,
        phase_peaks=tuple(peaks.resident_peaks if is_resident else peaks.used_peaks),
        last_s=peaks.last_s,
    )


def _read_samples(path: Path, peaks: _Peaks) -> bool:
    """Whether there was a sample."""
    highest, marks_s = peaks.highest, peaks.marks_s
    used_curve, resident_curve = peaks.used.add, peaks.resident.add
    used_peak = process_peak = rss_peak = -1
    last: dict[str, Any] | None = None
    for last in read_values(path):
        time_s = last["time_s"]
        used, process, rss = last.get("used_bytes"), last.get("process_bytes"), last.get("rss_bytes")
        phase = bisect_right(marks_s, time_s) if marks_s else 0
        if used is not None:
            used_curve(time_s, used)
            peaks.last_used_s = time_s
            if used > used_peak:
                used_peak = used
            if used > (peaks.used_peaks[phase] or -1):
                peaks.used_peaks[phase] = used
        if process is not None and process > process_peak:
            process_peak = process
        if rss is not None:
            resident_curve(time_s, rss)
            if rss > rss_peak:
                rss_peak = rss
            if rss > (peaks.resident_peaks[phase] or -1):
                peaks.resident_peaks[phase] = rss
        if last.get("total_bytes") is not None:
            peaks.device_bytes, peaks.used_version = last["total_bytes"], last.get("used_version")
    if last is None:
        return False
    peaks.host, peaks.device, peaks.last_s = last["host"], last["device"], last["time_s"]
    found = {"used_bytes": used_peak, "process_bytes": process_peak, "rss_bytes": rss_peak}
    highest.update({name: value for name, value in found.items() if value >= 0})
    return True


def _read_memory(path: Path, peaks: _Peaks, *, draws: bool) -> None:
    """The records at step edges; they give the curve only where there are no samples."""
    highest = peaks.highest
    names = ("allocated_peak_bytes", "reserved_peak_bytes", "rss_bytes")
    last: dict[str, Any] | None = None
    for last in read_values(path):
        for name in names:
            value = last.get(name)
            if value is not None and value > highest.get(name, -1):
                highest[name] = value
        used, time_s = last.get("device_used_bytes"), last["time_s"]
        if used is not None and used > highest.get("used_bytes", -1):
            highest["used_bytes"] = used
        for phase, num_bytes in (last.get("allocator_peaks_bytes") or {}).items():
            peaks.allocator = peaks.allocator or {}
            peaks.allocator[phase] = max(num_bytes, peaks.allocator.get(phase, -1))
        if draws:
            phase_index = bisect_right(peaks.marks_s, time_s)
            for value, curve, of_phases in (
                (used, peaks.used, peaks.used_peaks),
                (last.get("rss_bytes"), peaks.resident, peaks.resident_peaks),
            ):
                if value is not None:
                    curve.add(time_s, value)
                    of_phases[phase_index] = max(value, of_phases[phase_index] or -1)
            if used is not None:
                peaks.last_used_s = time_s
    if last is not None:
        peaks.host, peaks.device = last["host"], last["device"]
        peaks.last_s = max(last["time_s"], peaks.last_s or 0.0)


def _unknown(
    source: str, peaks: _Peaks, events: Sequence[Event], *, is_sampled: bool, ended_s: float | None
) -> str | None:
    """Since when NVML's use is not known, and why; None where it is known to the last."""
    if peaks.device == CPU:
        return None
    troubles = [
        event
        for event in events
        if event.kind == MONITOR_EVENT
        and event.facts.get("source") == source
        and ("used_bytes" in event.facts.get("unknown", ()) or event.facts.get("trouble") == SAMPLER_FAILED)
    ]
    if peaks.last_used_s is None:
        return str(troubles[0].facts.get("trouble", troubles[0].message)) if troubles else None
    # A reading after the trouble says that it passed.
    lasting = [event for event in troubles if event.time_s >= peaks.last_used_s]
    if lasting:
        return f"not known after {clock(lasting[0].time_s)} ({lasting[0].facts.get('trouble', lasting[0].message)})"
    if is_sampled and ended_s is not None and ended_s - peaks.last_used_s > QUIET_END_S:
        return f"not known after {clock(peaks.last_used_s)} (the samples end there)"
    return None


def clock(time_s: float) -> str:
    """HH:MM:SS by this host's clock."""
    return time.strftime("%H:%M:%S", time.localtime(time_s))
