"""One monitor per host instead of one per rank, for runs with so many ranks that there would be too many files.

The ranks of a host share a mailbox in its memory. Each posts there who it is, and after each step what torch says of
its memory; local rank 0 samples all their GPUs and writes two files for the whole host. A rank monitors itself where
local rank 0 cannot see its GPU (SLURM may show each task only its own) or does not share its memory (separate
containers).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from dist_trainer.cluster.process_table import started_ticks
from dist_trainer.monitor import mailbox as mailboxes
from dist_trainer.monitor.gpu.devices import DeviceIdentity
from dist_trainer.monitor.gpu.diagnostics import MEMORY_FIELDS, Diagnostic, DiagnosticLog
from dist_trainer.monitor.gpu.nvml import Nvml, NvmlError
from dist_trainer.monitor.mailbox import Mailbox
from dist_trainer.monitor.processes import OtherProcess
from dist_trainer.monitor.rank import RankMonitor, RankSampler
from dist_trainer.monitor.sampler import Sampler
from dist_trainer.monitor.series import Series
from dist_trainer.monitor.sources import CPU, GpuSource, HostSource, Source
from dist_trainer.records import MemoryRecord, RecordWriter, host_memory_file, samples_file

# Each rank that monitors itself has two files, opened at the start and appended to ten times a second. A shared file
# system takes about a hundred such files without anybody noticing; 8,192 ranks would make 16,384.
MAX_NUM_RANKS_ALONE = 64
# With thousands of GPUs a quiet one gets a line each half minute, not each second, and after n hours one each n half
# minutes. New peaks and changes are still written at once.
SPACING = 30.0
# A rank's own figures are written when a peak has risen, at the end, and else each minute; after n hours, each n.
RECORD_EVERY_S = 60.0
RECORD_FRACTION = 1 / 60


@dataclass(frozen=True)
class PlaceOnHost:
    """One rank among those of its host."""

    rank: int
    local_rank: int
    local_world_size: int


@dataclass(frozen=True)
class Hello:
    """The first message of a rank: who it is and which GPU it has (None on a CPU)."""

    rank: int
    pid: int
    started_ticks: int
    identity: DeviceIdentity | None

    @classmethod
    def of_this_process(cls, rank: int, identity: DeviceIdentity | None) -> Hello:
        pid = os.getpid()
        return cls(rank, pid, started_ticks(pid) or 0, identity)

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> Hello:
        known = message["identity"]
        return cls(**{**message, "identity": None if known is None else DeviceIdentity(**known)})

    @property
    def device(self) -> str:
        return CPU if self.identity is None else self.identity.uuid or self.identity.pci_bus_id or CPU


def open_monitor(
    records_dir: Path,
    place: PlaceOnHost,
    identity: DeviceIdentity | None,
    interval_s: float,
    *,
    start_id: int = 0,
    name: str,
    meet: Callable[[], None],
) -> RankMonitor:
    """The rank's monitor, one per host where there are many ranks. Every rank of the run has to call this.

    `meet` is a barrier over all ranks; it is called three times. `name`: the same on all ranks, and of no other run
    that goes on now. The other arguments are RankSampler's.
    """
    # The host's name is part of the path because two containers, each a host of its own, may share one /dev/shm.
    path = mailboxes.FOLDER / f"dist_trainer-{name}-{socket.gethostname()}"
    is_first = place.local_rank == 0
    mailbox = _try(lambda: Mailbox.make(path, place.local_world_size)) if is_first else None
    meet()
    if not is_first:
        mailbox = _try(lambda: Mailbox.open(path, place.local_world_size))
    if mailbox is not None:
        mailbox.post(place.local_rank, asdict(Hello.of_this_process(place.rank, identity)))
    meet()
    monitor: RankMonitor | None = None
    if is_first and mailbox is not None:
        # Every rank that will use the mailbox has it open: unlinked now, it leaves nothing behind if ranks are killed.
        path.unlink()
        monitor = HostMonitor(records_dir, mailbox, place, interval_s, start_id=start_id)
    meet()
    if not is_first and mailbox is not None and mailbox.has_accepted(place.local_rank, place.rank):
        device = CPU if identity is None else identity.uuid or CPU
        monitor = WatchedRank(mailbox, place.local_rank, device, start_id=start_id)
    return monitor or RankSampler(records_dir, place.rank, identity, interval_s, start_id=start_id)


class WatchedRank(RankMonitor):
    """A rank whose GPU is sampled by local rank 0 of its host. It has no thread and no files and does not load NVML."""

    def __init__(self, mailbox: Mailbox, slot: int, device: str, *, start_id: int = 0) -> None:
        self.start_id = start_id
        self._device = device
        self._mailbox = mailbox
        self._slot = slot

    @property
    def device(self) -> str:
        return self._device

    @property
    def peak_used_bytes(self) -> None:
        return None

    def at_step_edge(self) -> None:
        pass

    def write(self, record: MemoryRecord) -> None:
        self._mailbox.post(self._slot, vars(record))


class HostMonitor(RankMonitor):
    """Local rank 0 of a host: samples the GPUs of the ranks that have posted a Hello, and accepts those it can see.

    Samples go to records/memory-samples-host-N.jsonl, where N is this rank; the figures that the ranks post go to
    memory-host-N.jsonl. With `interval_s` 0 there is no thread, and all GPUs are read when a step of this rank ends.
    """

    def __init__(
        self, records_dir: Path, mailbox: Mailbox, place: PlaceOnHost, interval_s: float, *, start_id: int = 0
    ) -> None:
        self.start_id = start_id
        self._mailbox = mailbox
        self._nvml: Nvml | None = None
        self._is_threaded = interval_s > 0
        self._logs: dict[int, DiagnosticLog] = {}
        source_name = f"host-{place.rank}"
        samples = RecordWriter(records_dir / samples_file(source_name)) if self._is_threaded else None
        self._watched = list(self._watch(records_dir, place.local_world_size, samples))
        self._own = next(one for one in self._watched if one.slot == place.local_rank)
        records = RecordWriter(records_dir / host_memory_file(place.rank))
        self._ranks = _RanksOfHost(mailbox, self._watched, records, samples)
        self.sampler = Sampler([self._ranks], interval_s, self._say_of_all)

    @property
    def device(self) -> str:
        return self._own.series.source.device

    @property
    def peak_used_bytes(self) -> int | None:
        return self._own.series.peak_used_bytes

    def start(self) -> None:
        if self._is_threaded:
            self.sampler.start()

    def begin_phase(self, name: str) -> None:
        # All ranks of a run begin a phase together.
        for one in self._watched:
            one.series.phase = name

    def at_step_edge(self) -> None:
        if self._is_threaded:
            self.sampler.go_on_after_fork()
        else:
            self.sampler.look(is_full=False)
            self._ranks.collect()

    def write(self, record: MemoryRecord) -> None:
        self._mailbox.post(self._own.slot, vars(record))

    def stop(self) -> None:
        if self._is_threaded:
            self.sampler.stop()
        else:
            self._ranks.close()
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None

    def _watch(self, records_dir: Path, num_slots: int, samples: RecordWriter | None) -> Iterator[_Watched]:
        for slot in range(num_slots):
            message = self._mailbox.read(slot)
            if message is None:
                continue
            hello = Hello.read(message)
            self._logs[hello.rank] = DiagnosticLog(
                records_dir, rank=hello.rank, source=f"rank-{hello.rank}", start_id=self.start_id
            )
            source = self._source(hello, is_own=slot == 0)
            if source is not None:
                self._mailbox.accept(slot, hello.rank)
                yield _Watched(slot, hello, Series(source, samples, spacing=SPACING, start_id=self.start_id))

    def _source(self, hello: Hello, *, is_own: bool) -> Source | None:
        """None if the rank should monitor itself. On a host without NVML no rank is given a source."""
        log = self._logs[hello.rank]
        try:
            process = OtherProcess(hello.pid, hello.started_ticks)
        except psutil.Error:
            return None
        if hello.identity is None:
            return HostSource(process, rank=hello.rank)
        try:
            self._nvml = self._nvml or Nvml(log.say)
        except NvmlError as error:
            log.say(error.diagnostic.about(hello.device, MEMORY_FIELDS))
            return HostSource(process, hello.device, rank=hello.rank)
        try:
            return GpuSource(self._nvml, hello.identity, process, log.say, rank=hello.rank)
        except NvmlError as error:
            if not is_own:
                return None
            log.say(error.diagnostic.about(hello.device, MEMORY_FIELDS))
            return HostSource(process, hello.device, rank=hello.rank)

    def _say_of_all(self, diagnostic: Diagnostic) -> None:
        for log in self._logs.values():
            log.say(diagnostic)


@dataclass
class _Watched:
    """One rank with its last posted and its last written record."""

    slot: int
    hello: Hello
    series: Series
    first_s: float = 0.0
    posted: MemoryRecord | None = None
    written: MemoryRecord | None = None

    @property
    def has_news(self) -> bool:
        if self.posted is None:
            return False
        if self.written is None or _peaks(self.posted) != _peaks(self.written):
            return True
        now_s = _moment_s(self.posted)
        return now_s - _moment_s(self.written) >= max(RECORD_EVERY_S, RECORD_FRACTION * (now_s - self.first_s))


class _RanksOfHost:
    """Everything that is sampled on a host, and the host's two files."""

    def __init__(
        self, mailbox: Mailbox, watched: list[_Watched], records: RecordWriter, samples: RecordWriter | None
    ) -> None:
        self._mailbox = mailbox
        self._watched = watched
        self._records: RecordWriter | None = records
        self._samples = samples

    def look(self, *, is_full: bool) -> None:
        for one in self._watched:
            one.series.look(is_full=is_full)
        if is_full:
            self.collect()

    def collect(self) -> None:
        """Reads the mailbox, and writes the records that are due."""
        for one in self._watched:
            message = self._mailbox.read(one.slot)
            # The first message of a rank is its Hello, not a record.
            if message is None or "step" not in message:
                continue
            source = one.series.source
            if isinstance(source, GpuSource):
                source.expects_own_process = True
            one.posted = replace(
                MemoryRecord(**message), device=source.device, device_used_bytes=one.series.peak_used_bytes
            )
            if one.has_news:
                self._write(one)

    def close(self) -> None:
        """Reads the mailbox once more and writes what was held back. May be called more than once."""
        if self._records is None:
            return
        self.collect()
        for one in self._watched:
            one.series.close()
            if one.posted is not None and one.posted != one.written:
                self._write(one)
        for writer in (self._records, self._samples):
            if writer is not None:
                writer.close()
        self._records = self._samples = None

    def _write(self, one: _Watched) -> None:
        if self._records is not None and one.posted is not None:
            self._records.write(one.posted)
            one.first_s = one.first_s or _moment_s(one.posted)
            one.written = one.posted


def _moment_s(record: MemoryRecord) -> float:
    """The record's time on the host's monotonic clock, which is the same clock for all ranks of the host."""
    assert record.monotonic_s is not None, "a rank that reads its memory says when"
    return record.monotonic_s


def _peaks(record: MemoryRecord) -> tuple[object, ...]:
    """The figures that can only rise."""
    return (
        record.allocated_peak_bytes,
        record.reserved_peak_bytes,
        record.device_used_bytes,
        record.allocator_peaks_bytes,
    )


def _try(make: Callable[[], Mailbox]) -> Mailbox | None:
    """The mailbox, or None: without one each rank monitors itself."""
    try:
        return make()
    except OSError:
        return None
