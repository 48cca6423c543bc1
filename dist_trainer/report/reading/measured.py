"""What each GPU, or each rank on a CPU, held over a run: its peaks, and a curve in bounded room.

Of more than a few sources no curve is kept but the range over all and the fullest's; its files are read again.
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
    """One source. `curve` is NVML's use over time, or the resident set where `is_resident`; None where there are many
    sources and this is not the fullest. `phase_peaks` are its highest values in each phase of training, None being what
    was before the first. `last_s` is when it was last recorded, for people.
    """

    measured: Measured
    curve: Envelope | None
    is_resident: bool
    phase_peaks: Mapping[str | None, int]
    last_s: float | None


@dataclass(frozen=True)
class Memory:
    """All sources, ranks in order. `range_over_all` is None where each has a curve of its own. Times are seconds since
    the epoch; all curves begin at `origin_s`, and again at `starts_s`, by the start_id of the records of each start.
    """

    histories: tuple[History, ...]
    range_over_all: Envelope | None
    origin_s: float
    starts_s: Mapping[int, float]

    @property
    def is_resident(self) -> bool:
        """Whether no GPU was read: resident sets are all there is."""
        return all(history.is_resident for history in self.histories)

    @property
    def shown(self) -> tuple[History, ...]:
        """Those of one kind: of sources that were read and others that were not, the former."""
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
) -> Memory:
    """Every source with a file in the folder. `phase_starts` are the first step of each phase and its name, in order;
    `has_ended` says whether the run came to its end. `left_out` gets how many lines of which file are damaged.
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
    return Memory(tuple(histories), curves.range_over_all(is_resident=is_resident), origin_s, starts_s)


class _Curves:
    """Each source's curves while there are few; of more, the range over all."""

    def __init__(self, origin_s: float) -> None:
        self._origin_s = origin_s
        self._each: dict[str, tuple[Envelope, Envelope]] = {}
        self._ranges: tuple[Envelope, Envelope] | None = None

    def take(self, source: str, part: Gathered) -> None:
        """Takes the curves over, so that those of many sources need no room."""
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
            # Shown only where no GPU was read at all.
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
    """What keeps NVML's use of a source from being known."""
    diagnostics: dict[str, list[Event]] = {}
    for event in events:
        if event.kind == MONITOR_EVENT and (
            "used_bytes" in event.facts.get("unknown", ()) or event.facts.get("diagnostic") == SAMPLER_FAILED
        ):
            diagnostics.setdefault(str(event.facts.get("source")), []).append(event)
    return diagnostics


def _unknown(found: Gathered, diagnostics: Sequence[Event], *, has_ended: bool) -> str | None:
    """Since when NVML's use is not known, and why; None where it is known to the last."""
    if found.device == CPU:
        return None
    if found.last_used is None:
        return str(diagnostics[0].facts.get("diagnostic", diagnostics[0].message)) if diagnostics else None
    # A reading after the diagnostic says that it passed.
    lasting = [event for event in diagnostics if _moment(event) >= found.last_used]
    if lasting:
        return f"not known after {clock(lasting[0].time_s)} ({lasting[0].facts.get('diagnostic', lasting[0].message)})"
    if has_ended and found.is_sampled and not found.is_whole:
        return f"not known after {clock(found.last_used[-1])} (the samples end there)"
    return None


def _moment(diagnostic: Event) -> Moment:
    """One that does not say when it was is taken to last."""
    facts = diagnostic.facts
    return facts.get("start_id", 0), facts.get("monotonic_s", math.inf), diagnostic.time_s


def clock(time_s: float) -> str:
    """HH:MM:SS by this host's clock."""
    return time.strftime("%H:%M:%S", time.localtime(time_s))
