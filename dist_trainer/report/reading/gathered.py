"""What the records say of one GPU, or of one rank on a CPU, read line by line in memory of bounded size."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeVar

from dist_trainer.memory.targets import CPU
from dist_trainer.report.reading.envelope import Envelope

CURVE_WIDTH_S = 0.05
Name = TypeVar("Name", str, str | None)
# (start_id, monotonic_s, time_s) of a record: orders the records of one source even if the wall clock was set back.
# time_s is shown to people.
Moment = tuple[int, float, float]


class Gathered:
    """`used` and `resident` are the curves of NVML's used bytes and of the resident set. A figure without a record is
    None.

    Take the samples first, then the records of the same time: records add to a curve only where there are no samples.
    `phase_starts`: each phase's first step and name, in order. `is_whole`: whether the sampler ended in order and knew
    the used bytes to the end.
    """

    def __init__(self, rank: int | None, origin_s: float, phase_starts: Sequence[tuple[int, str]]) -> None:
        self.rank = rank
        self.host = ""
        self.device = CPU
        self.is_sampled = False
        self.is_whole = False
        self.used_version: int | None = None
        self.device_bytes: int | None = None
        self.allocator_bytes: dict[str, int] | None = None
        self.last: Moment | None = None
        self.last_used: Moment | None = None
        self.highest: dict[str, int] = {}
        self.used_peaks: dict[str | None, int] = {}
        self.resident_peaks: dict[str | None, int] = {}
        self.used = Envelope(origin=origin_s, width=CURVE_WIDTH_S)
        self.resident = Envelope(origin=origin_s, width=CURVE_WIDTH_S)
        # start_id -> when the curves begin again after a restart.
        self.starts_s: dict[int, float] = {}
        self._phase_starts = phase_starts
        self._began_s: dict[int, float] = {}

    @property
    def is_resident(self) -> bool:
        """Whether nothing but the resident set is known."""
        return "used_bytes" not in self.highest

    @property
    def last_s(self) -> float | None:
        return None if self.last is None else self.last[-1]

    @property
    def curve(self) -> Envelope:
        return self.resident if self.is_resident else self.used

    def take_sample(self, values: Mapping[str, Any]) -> None:
        """Takes one DeviceSample, as a mapping of its fields."""
        highest, phase = self.highest, values["phase"]
        moment = _moment(values)
        at_s = self._drawn_s(moment)
        used = values.get("used_bytes")
        if used is not None:
            self.used.add(at_s, used)
            self.last_used = moment
            if used > highest.get("used_bytes", -1):
                highest["used_bytes"] = used
            if used > self.used_peaks.get(phase, -1):
                self.used_peaks[phase] = used
            process = values.get("process_bytes")
            if process is not None and process > highest.get("process_bytes", -1):
                highest["process_bytes"] = process
        rss = values.get("rss_bytes")
        if rss is not None:
            if rss > highest.get("rss_bytes", -1):
                highest["rss_bytes"] = rss
            if used is None:
                # Not drawn for a GPU that could be read at other times.
                self.resident.add(at_s, rss)
                if rss > self.resident_peaks.get(phase, -1):
                    self.resident_peaks[phase] = rss
        total = values.get("total_bytes")
        if total is not None:
            self.device_bytes, self.used_version = total, values.get("used_version")
        self.host, self.device, self.last = values["host"], values["device"] or CPU, moment
        self.is_sampled, self.is_whole = True, values["is_last"] and used is not None

    def take_record(self, values: Mapping[str, Any]) -> None:
        """Takes one MemoryRecord, as a mapping of its fields."""
        highest, moment = self.highest, _moment(values)
        for name in ("allocated_peak_bytes", "reserved_peak_bytes", "rss_bytes"):
            value = values.get(name)
            if value is not None and value > highest.get(name, -1):
                highest[name] = value
        used = values.get("device_used_bytes")
        if used is not None and used > highest.get("used_bytes", -1):
            highest["used_bytes"] = used
        for phase, num_bytes in (values.get("allocator_peaks_bytes") or {}).items():
            self.allocator_bytes = self.allocator_bytes or {}
            self.allocator_bytes[phase] = max(num_bytes, self.allocator_bytes.get(phase, -1))
        if not self.is_sampled:
            self._draw(moment, values["step"], used, values.get("rss_bytes"))
        if self.last is None or moment >= self.last:
            # Samples of an earlier start do not cover the end of this one.
            self.is_whole = self.is_whole and self.last is not None and moment[0] == self.last[0]
            self.host, self.device, self.last = values["host"], values["device"] or CPU, moment

    def include(self, other: Gathered) -> None:
        """Merges what other files hold of the same source, except for the curves."""
        self.highest = _higher(self.highest, other.highest)
        if other.allocator_bytes is not None:
            self.allocator_bytes = _higher(self.allocator_bytes or {}, other.allocator_bytes)
        self.used_peaks = _higher(self.used_peaks, other.used_peaks)
        self.resident_peaks = _higher(self.resident_peaks, other.resident_peaks)
        if other.last is not None and (self.last is None or other.last >= self.last):
            self.host, self.device, self.last, self.is_whole = other.host, other.device, other.last, other.is_whole
            self.device_bytes = other.device_bytes or self.device_bytes
            self.used_version = other.used_version or self.used_version
        self.starts_s = earliest(self.starts_s, other.starts_s)
        self.last_used = max(filter(None, (self.last_used, other.last_used)), default=None)
        self.is_sampled = self.is_sampled or other.is_sampled

    def _drawn_s(self, moment: Moment) -> float:
        """The time at which a curve has this moment: the wall clock at the first record of its start, plus the
        monotonic time that passed since.
        """
        start_id, monotonic_s, time_s = moment
        began_s = self._began_s.setdefault(start_id, time_s - monotonic_s)
        self.starts_s.setdefault(start_id, time_s)
        return began_s + monotonic_s

    def _draw(self, moment: Moment, step: int, used: int | None, rss: int | None) -> None:
        place = bisect_right(self._phase_starts, step, key=itemgetter(0))
        phase = self._phase_starts[place - 1][1] if place else None
        at_s = self._drawn_s(moment)
        for value, curve, of_phases in (
            (used, self.used, self.used_peaks),
            (rss, self.resident, self.resident_peaks),
        ):
            if value is not None:
                curve.add(at_s, value)
                of_phases[phase] = max(value, of_phases.get(phase, -1))
        if used is not None:
            self.last_used = moment


def _moment(values: Mapping[str, Any]) -> Moment:
    time_s, monotonic_s = values["time_s"], values["monotonic_s"]
    # Older records have no monotonic clock: the wall clock takes its place.
    return values["start_id"], time_s if monotonic_s is None else monotonic_s, time_s


def earliest(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    return {start_id: min(part[start_id] for part in (one, other) if start_id in part) for start_id in {**one, **other}}


def _higher(one: Mapping[Name, int], other: Mapping[Name, int]) -> dict[Name, int]:
    return {name: max(one.get(name, -1), other.get(name, -1)) for name in {**one, **other}}
