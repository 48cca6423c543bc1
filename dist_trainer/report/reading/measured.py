"""What each GPU, or each rank on a CPU, held over a run: its peaks, and a curve of bounded size.

With many sources only two curves are kept: the range over all of them, and the curve of the one with the highest peak,
for which its files are read a second time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dist_trainer.memory.targets import CPU, Measured
from dist_trainer.records import MONITOR_EVENT, SAMPLER_FAILED, Event, LeftOut
from dist_trainer.report.reading.envelope import Envelope
from dist_trainer.report.reading.gathered import CURVE_WIDTH_S, Gathered, Moment, earliest
from dist_trainer.report.reading.memory_files import FileGroup, find_files, first_time_s, gather, in_order

MAX_NUM_CURVES = 8


@dataclass(frozen=True)
class History:
    """One source. `curve` is NVML's used bytes over time, or the resident set if `is_resident`; None where there are
    many sources and another one has the highest peak. `phase_peaks`: the highest value in each training phase; the key
    None is the time before the first one. `last_s`: the time of its last record, for people.
    """

    measured: Measured
    curve: Envelope | None
    is_resident: bool
    phase_peaks: Mapping[str | None, int]
    last_s: float | None


@dataclass(frozen=True)
class MemoryHistory:
    """All sources, in order of ranks. `range_over_all` is None where each source has a curve. Times are seconds since
    the epoch. Every curve begins at `origin_s`, and begins again at `starts_s[start_id]` after each restart.
    """

    histories: tuple[History, ...]
    range_over_all: Envelope | None
    origin_s: float
    starts_s: Mapping[int, float]

    @property
    def is_resident(self) -> bool:
        """Whether no GPU could be read, so that resident sets are all there is."""
        return all(history.is_resident for history in self.histories)

    @property
    def shown(self) -> tuple[History, ...]:
        """The sources to draw: those whose GPU was read; if there are none, those with a resident set."""
        is_resident = self.is_resident
        return tuple(history for history in self.histories if history.is_resident == is_resident)

    @property
    def fullest(self) -> History | None:
        return _fullest(self.histories)


def read_memory(
    records_dir: Path,
    events: Sequence[Event],
    *,
    phase_starts: Sequence[tuple[int, str]] = (),
    has_ended: bool = False,
    left_out: LeftOut | None = None,
) -> MemoryHistory:
    """Every source that has a file in the folder. `phase_starts`: each phase's first step and name, in order;
    `has_ended`: whether the run has come to its end. Into `left_out` goes how many damaged lines each file has.
    """
    groups = find_files(records_dir)
    firsts = [event.time_s for event in events if event.kind == "start"][:1]
    first_s = first_time_s(groups)
    origin_s = min(firsts if first_s is None else [*firsts, first_s], default=0.0)
    found: dict[str, Gathered] = {}
    groups_of: dict[str, list[FileGroup]] = {}
    curves = _Curves(origin_s)
    for group in groups:
        for source, part in gather(group, origin_s, phase_starts, left_out).items():
            groups_of.setdefault(source, []).append(group)
            curves.take(source, part)
            if source in found:
                found[source].include(part)
            else:
                found[source] = part
    diagnostics = _diagnostics_by_source(events)
    histories = [
        _history(
            source, found[source], curves.of(source, found[source]), diagnostics.get(source, ()), has_ended=has_ended
        )
        for source in sorted(found, key=in_order)
    ]
    top = _fullest(histories)
    if top is not None and top.curve is None:
        curve = Envelope(origin=origin_s, width=CURVE_WIDTH_S)
        for group in groups_of[top.measured.source]:
            part = gather(group, origin_s, phase_starts)[top.measured.source]
            curve.include(part.resident if top.is_resident else part.used)
        histories[histories.index(top)] = replace(top, curve=curve)
    is_resident = all(history.is_resident for history in histories)
    starts_s: Mapping[int, float] = {}
    for one in found.values():
        starts_s = earliest(starts_s, one.starts_s)
    return MemoryHistory(tuple(histories), curves.range_over_all(is_resident=is_resident), origin_s, starts_s)


class _Curves:
    """The curves of each source while they are few; of more, only the range over all."""

    def __init__(self, origin_s: float) -> None:
        self._origin_s = origin_s
        self._each: dict[str, tuple[Envelope, Envelope]] = {}
        self._ranges: tuple[Envelope, Envelope] | None = None

    def take(self, source: str, part: Gathered) -> None:
        """Moves the curves out of `part`, so that many sources do not hold one each in memory."""
        used, resident = part.used, part.resident
        part.used, part.resident = self._new(), self._new()
        if self._ranges is not None:
            self._fold(self._ranges, used, resident)
            return
        if source in self._each:
            for own, more in zip(self._each[source], (used, resident), strict=True):
                own.include(more)
            return
        self._each[source] = (used, resident)
        if len(self._each) > MAX_NUM_CURVES:
            self._ranges = (self._new(), self._new())
            for pair in self._each.values():
                self._fold(self._ranges, *pair)
            self._each.clear()

    def of(self, source: str, found: Gathered) -> Envelope | None:
        pair = self._each.get(source)
        return None if pair is None else pair[found.is_resident]

    def range_over_all(self, *, is_resident: bool) -> Envelope | None:
        return None if self._ranges is None else self._ranges[is_resident]

    def _new(self) -> Envelope:
        return Envelope(origin=self._origin_s, width=CURVE_WIDTH_S)

    @staticmethod
    def _fold(ranges: tuple[Envelope, Envelope], used: Envelope, resident: Envelope) -> None:
        of_used, of_resident = ranges
        if used:
            of_used.include_whole(used)
        else:
            # Drawn only if no GPU was read at all.
            of_resident.include_whole(resident)


def _fullest(histories: Iterable[History]) -> History | None:
    def order(history: History) -> tuple[bool, int]:
        measured = history.measured
        return not history.is_resident, (measured.resident_bytes if history.is_resident else measured.used_bytes) or 0

    return max(histories, key=order, default=None)


def _history(
    source: str, found: Gathered, curve: Envelope | None, diagnostics: Sequence[Event], *, has_ended: bool
) -> History:
    highest = found.highest
    measured = Measured(
        source=source,
        rank=found.rank,
        host=found.host,
        device=found.device,
        used_bytes=highest.get("used_bytes"),
        used_version=found.used_version,
        device_bytes=found.device_bytes,
        process_bytes=highest.get("process_bytes"),
        allocated_bytes=highest.get("allocated_peak_bytes"),
        reserved_bytes=highest.get("reserved_peak_bytes"),
        allocator_bytes=found.allocator_bytes,
        resident_bytes=highest.get("rss_bytes"),
        is_sampled=found.is_sampled,
        unknown=_unknown(found, diagnostics, has_ended=has_ended),
    )
    peaks = found.resident_peaks if found.is_resident else found.used_peaks
    return History(measured, curve, found.is_resident, peaks, found.last_s)


def _diagnostics_by_source(events: Sequence[Event]) -> Mapping[str, list[Event]]:
    """The events that explain why a source's NVML figures are not known, by source."""
    diagnostics: dict[str, list[Event]] = {}
    for event in events:
        if event.kind == MONITOR_EVENT and (
            "used_bytes" in event.facts.get("unknown", ()) or event.facts.get("diagnostic") == SAMPLER_FAILED
        ):
            diagnostics.setdefault(str(event.facts.get("source")), []).append(event)
    return diagnostics


def _unknown(found: Gathered, diagnostics: Sequence[Event], *, has_ended: bool) -> str | None:
    """Since when NVML's used bytes are not known, and why; None if they are known to the end."""
    if found.device == CPU:
        return None
    if found.last_used is None:
        return str(diagnostics[0].facts.get("diagnostic", diagnostics[0].message)) if diagnostics else None
    # A diagnostic that was followed by a reading has passed.
    lasting = [event for event in diagnostics if _moment(event) >= found.last_used]
    if lasting:
        return f"not known after {clock(lasting[0].time_s)} ({lasting[0].facts.get('diagnostic', lasting[0].message)})"
    if has_ended and found.is_sampled and not found.is_whole:
        return f"not known after {clock(found.last_used[-1])} (the samples end there)"
    return None


def _moment(diagnostic: Event) -> Moment:
    """A diagnostic without a time counts as one that lasts."""
    facts = diagnostic.facts
    return facts.get("start_id", 0), facts.get("monotonic_s", math.inf), diagnostic.time_s


def clock(time_s: float) -> str:
    """HH:MM:SS in this host's time zone."""
    return time.strftime("%H:%M:%S", time.localtime(time_s))
