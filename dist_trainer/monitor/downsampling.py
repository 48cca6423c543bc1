"""Downsampling of one source's samples, so that a file stays small over days and still shows every peak.

Kept at once: the first sample of all and of each phase, each new peak of device memory, and each sample with news of
the device (throttling, Xid). When memory has changed, the sample after the change is kept and the one before it; while
nothing changes, one now and then. The spacing of both grows with the length of the run, so that n hours take about
log(n) times the lines of one hour. Of a stretch of changes longer than the churn window only its lowest and its highest
sample are kept.
"""

from __future__ import annotations

from dist_trainer.records import DeviceSample
from dist_trainer.units import MIB

HEARTBEAT_S = 1.0
HEARTBEAT_FRACTION = 1 / 3600
CHURN_FRACTION = 1 / 18000


class Downsampler:
    """Takes the samples of one source in order of time and returns those to write. Holds back at most four samples.

    `spacing` multiplies the usual distance between the samples of quiet times and between the extremes of busy ones.
    """

    def __init__(self, *, spacing: float = 1.0) -> None:
        self._heartbeat_s = spacing * HEARTBEAT_S
        self._heartbeat_fraction = spacing * HEARTBEAT_FRACTION
        self._churn_fraction = spacing * CHURN_FRACTION
        self._start_s: float | None = None
        self._peak = (-1, -1)
        self._last_kept: DeviceSample | None = None
        self._last_heartbeat_s = 0.0
        self._last_churn_s = 0.0
        self._previous: DeviceSample | None = None
        self._lowest: DeviceSample | None = None
        self._highest: DeviceSample | None = None

    def offer(self, sample: DeviceSample, *, is_full: bool) -> list[DeviceSample]:
        """The samples to write now, in order of time. `is_full`: `sample` has all fields, not memory alone."""
        now_s = sample.monotonic_s
        if self._start_s is None:
            self._start_s = self._last_churn_s = now_s
        elapsed_s = now_s - self._start_s
        has_changed = self._last_kept is None or _memory(sample) != _memory(self._last_kept)
        is_new_peak = (sample.used_bytes or 0) > self._peak[0] or (sample.process_bytes or 0) > self._peak[1]
        self._peak = (max(self._peak[0], sample.used_bytes or 0), max(self._peak[1], sample.process_bytes or 0))
        heartbeat_is_due = is_full and now_s - self._last_heartbeat_s >= max(
            self._heartbeat_s * 0.99, elapsed_s * self._heartbeat_fraction
        )

        kept: list[DeviceSample] = []
        is_first = self._previous is None or sample.phase != self._previous.phase
        if is_first or is_new_peak or sample.xid_errors or heartbeat_is_due:
            kept = [*self._settled(sample), sample]
        elif has_changed:
            if self._previous is not None and self._previous is not self._last_kept and self._lowest is None:
                # The level before the change: the curve through the samples then shows a step and not a slope.
                kept.append(self._previous)
            self._lowest = min(self._lowest or sample, sample, key=_memory)
            self._highest = max(self._highest or sample, sample, key=_memory)
            if now_s - self._last_churn_s >= elapsed_s * self._churn_fraction:
                kept += self._extremes()
                self._last_churn_s = now_s
        if kept:
            self._last_kept = kept[-1]
        if sample in kept and is_full:
            self._last_heartbeat_s = now_s
        self._previous = sample
        return kept

    def flush(self) -> list[DeviceSample]:
        """The samples still held back, when the run has ended."""
        rest = self._extremes()
        if self._previous is not None and self._previous is not self._last_kept and self._previous not in rest:
            rest.append(self._previous)
        return rest

    def _settled(self, sample: DeviceSample) -> list[DeviceSample]:
        held = self._extremes()
        previous = self._previous
        if (
            not held
            and previous is not None
            and previous is not self._last_kept
            and _memory(previous) != _memory(sample)
        ):
            held.append(previous)
        return held

    def _extremes(self) -> list[DeviceSample]:
        found = [sample for sample in (self._lowest, self._highest) if sample is not None]
        self._lowest = self._highest = None
        found.sort(key=lambda sample: sample.monotonic_s)
        return found[:1] if len(found) == 2 and found[0] is found[1] else found


def _memory(sample: DeviceSample) -> tuple[int, ...]:
    """The figures whose change makes a sample worth keeping. Not the resident set, which never stands quite still."""
    if sample.used_bytes is None and sample.process_bytes is None:
        return ((sample.rss_bytes or 0) // MIB,)
    return (sample.used_bytes or 0, sample.process_bytes or 0)
