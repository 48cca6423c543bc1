"""The samples of one source over time: its peaks so far, and a file with the samples worth keeping."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dist_trainer.monitor.downsampling import Downsampler
from dist_trainer.monitor.sources import Source
from dist_trainer.records import DeviceSample, RecordWriter


class Series:
    """Reads a source again and again, keeps its peaks, and writes the samples that the downsampler keeps.

    `file` is a path, a writer shared with others (which `close` leaves open), or None to write nothing. `spacing` is
    passed to the downsampler. Samples bear `start_id` and the current `phase`; `phase` may be changed at any time.

    The peaks are plain integers, safe to read from another thread at any time; None until there was a sample.
    """

    def __init__(
        self, source: Source, file: Path | RecordWriter | None, *, spacing: float = 1.0, start_id: int = 0
    ) -> None:
        self.source = source
        self.phase: str | None = None
        self.peak_used_bytes: int | None = None
        self.peak_process_bytes: int | None = None
        self.peak_rss_bytes: int | None = None
        self.used_version: int | None = None
        self.total_bytes: int | None = None
        self.num_looks = 0
        self._start_id = start_id
        self._newest: DeviceSample | None = None
        self._downsampler = Downsampler(spacing=spacing)
        self._is_shared = isinstance(file, RecordWriter)
        self._writer = RecordWriter(file) if isinstance(file, Path) else file

    def look(self, *, is_full: bool) -> None:
        """Takes one sample; with `is_full` of all fields, else of memory alone. Raises OSError as the writer does."""
        sample = self.source.look(is_full=is_full)
        self.num_looks += 1
        if sample is None:
            self._newest = None
            return
        sample = self._newest = replace(sample, phase=self.phase, start_id=self._start_id)
        self.peak_used_bytes = _higher(self.peak_used_bytes, sample.used_bytes)
        self.peak_process_bytes = _higher(self.peak_process_bytes, sample.process_bytes)
        self.peak_rss_bytes = _higher(self.peak_rss_bytes, sample.rss_bytes)
        self.used_version = sample.used_version or self.used_version
        self.total_bytes = sample.total_bytes or self.total_bytes
        self._write(self._downsampler.offer(sample, is_full=is_full))

    def close(self) -> None:
        """Writes what the downsampler holds back, and marks the final sample as the last. Raises OSError."""
        self.source.close()
        if self._writer is not None:
            rest = [sample for sample in self._downsampler.flush() if sample is not self._newest]
            self._write(rest if self._newest is None else [*rest, replace(self._newest, is_last=True)])
            if not self._is_shared:
                self._writer.close()
            self._writer = None

    def _write(self, samples: list[DeviceSample]) -> None:
        if self._writer is not None:
            for sample in samples:
                self._writer.write(sample)


def _higher(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)
