"""What the records say of one GPU, or of one rank on a CPU, taken in line by line in bounded room."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from dist_trainer.memory.targets import CPU
from dist_trainer.report.reading.envelope import Envelope

CURVE_WIDTH_S = 0.05


class Gathered:
    """`used` and `resident` are the curves, of NVML's use and of the resident set. A figure without a record is None.

    Samples are to be taken in before the records of the same time: these give a curve only where there are no samples.
    """

    def __init__(self, rank: int | None, origin_s: float, marks_s: Sequence[float]) -> None:
        self.rank = rank
        self.host = ""
        self.device = CPU
        self.is_sampled = False
        self.used_version: int | None = None
        self.device_bytes: int | None = None
        self.allocator_bytes: dict[str, int] | None = None
        self.last_s: float | None = None
        self.last_used_s: float | None = None
        self.highest: dict[str, int] = {}
        self.used_peaks: list[int | None] = [None] * (len(marks_s) + 1)
        self.resident_peaks: list[int | None] = [None] * (len(marks_s) + 1)
        self.used = Envelope(origin=origin_s, width=CURVE_WIDTH_S)
        self.resident = Envelope(origin=origin_s, width=CURVE_WIDTH_S)
        self._marks_s = marks_s

    @property
    def is_resident(self) -> bool:
        """Whether the resident set is all that is known."""
        return "used_bytes" not in self.highest

    @property
    def curve(self) -> Envelope:
        return self.resident if self.is_resident else self.used

    def take_sample(self, values: Mapping[str, Any]) -> None:
        """A DeviceSample."""
        time_s = values["time_s"]
        highest, marks_s = self.highest, self._marks_s
        phase = bisect_right(marks_s, time_s) if marks_s else 0
        used = values.get("used_bytes")
        if used is not None:
            self.used.add(time_s, used)
            self.last_used_s = time_s
            if used > highest.get("used_bytes", -1):
                highest["used_bytes"] = used
            if used > (self.used_peaks[phase] or -1):
                self.used_peaks[phase] = used
            process = values.get("process_bytes")
            if process is not None and process > highest.get("process_bytes", -1):
                highest["process_bytes"] = process
        rss = values.get("rss_bytes")
        if rss is not None:
            if rss > highest.get("rss_bytes", -1):
                highest["rss_bytes"] = rss
            if used is None:
                # Of a GPU that was read the resident set is not shown over time.
                self.resident.add(time_s, rss)
                if rss > (self.resident_peaks[phase] or -1):
                    self.resident_peaks[phase] = rss
        total = values.get("total_bytes")
        if total is not None:
            self.device_bytes, self.used_version = total, values.get("used_version")
        self.host, self.device, self.last_s = values["host"], values["device"] or CPU, time_s
        self.is_sampled = True

    def take_record(self, values: Mapping[str, Any]) -> None:
        """A MemoryRecord."""
        highest, time_s = self.highest, values["time_s"]
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
            self._draw(time_s, used, values.get("rss_bytes"))
        self.host, self.device = values["host"], values["device"] or CPU
        self.last_s = max(time_s, self.last_s or 0.0)

    def include(self, other: Gathered) -> None:
        """Takes in what other files hold of the same source, except for the curves."""
        self.highest = _higher(self.highest, other.highest)
        if other.allocator_bytes is not None:
            self.allocator_bytes = _higher(self.allocator_bytes or {}, other.allocator_bytes)
        self.used_peaks = [_highest(pair) for pair in zip(self.used_peaks, other.used_peaks, strict=True)]
        self.resident_peaks = [_highest(pair) for pair in zip(self.resident_peaks, other.resident_peaks, strict=True)]
        if (other.last_s or 0.0) >= (self.last_s or 0.0):
            self.host, self.device = other.host, other.device
            self.device_bytes = other.device_bytes or self.device_bytes
            self.used_version = other.used_version or self.used_version
        self.last_s = _highest((self.last_s, other.last_s))
        self.last_used_s = _highest((self.last_used_s, other.last_used_s))
        self.is_sampled = self.is_sampled or other.is_sampled

    def _draw(self, time_s: float, used: int | None, rss: int | None) -> None:
        phase = bisect_right(self._marks_s, time_s)
        for value, curve, of_phases in (
            (used, self.used, self.used_peaks),
            (rss, self.resident, self.resident_peaks),
        ):
            if value is not None:
                curve.add(time_s, value)
                of_phases[phase] = max(value, of_phases[phase] or -1)
        if used is not None:
            self.last_used_s = time_s


def _higher(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: max(one.get(name, -1), other.get(name, -1)) for name in {**one, **other}}


def _highest(values: Sequence[Any]) -> Any:
    return max((value for value in values if value is not None), default=None)
