"""The monitor of one rank's memory while the rank runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from dist_trainer.monitor.gpu.devices import DeviceIdentity
from dist_trainer.monitor.gpu.diagnostics import MEMORY_FIELDS, DiagnosticLog
from dist_trainer.monitor.gpu.nvml import Nvml, NvmlError
from dist_trainer.monitor.processes import OwnProcess
from dist_trainer.monitor.sampler import Sampler
from dist_trainer.monitor.series import Series
from dist_trainer.monitor.sources import CPU, GpuSource, HostSource, Source
from dist_trainer.records import MemoryRecord, RecordWriter, memory_file, samples_file

Self = TypeVar("Self", bound="RankMonitor")


class RankMonitor(ABC):
    """Watches one rank's memory from before the model is built to the end: start() and stop(), or `with`.

    `device`: UUID of the GPU or MIG instance, or "cpu". `peak_used_bytes`: the most bytes in use on that device in any
    sample so far; None if another process samples it. Records bear `start_id`, see DeviceSample.
    """

    start_id = 0

    @property
    @abstractmethod
    def device(self) -> str: ...

    @property
    @abstractmethod
    def peak_used_bytes(self) -> int | None: ...

    def start(self) -> None:  # noqa: B027
        """Starts sampling; does nothing if another process samples this rank's device."""

    def begin_phase(self, name: str) -> None:  # noqa: B027
        """Samples bear this phase from now on; does nothing if another process samples this rank's device."""

    @abstractmethod
    def at_step_edge(self) -> None:
        """To be called when a step has ended. At that time a rank with a GPU surely holds memory on it."""

    @abstractmethod
    def write(self, record: MemoryRecord) -> None:
        """Writes the figures that the rank itself read at a step's end. Raises OSError if that fails."""

    def stop(self) -> None:  # noqa: B027
        """Ends the sampling thread and this use of NVML, if any. May be called more than once."""

    def __enter__(self: Self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class RankSampler(RankMonitor):
    """Samples the rank's GPU, or without a GPU its resident set, into records/memory-samples-rank-N.jsonl.

    `identity` is the rank's GPU; None on a CPU, where NVML is not even loaded. With `interval_s` 0 there is no thread
    and no file of samples, and the GPU is read only when a step ends. If NVML is not available, one event says so.
    """

    def __init__(
        self,
        records_dir: Path,
        rank: int,
        identity: DeviceIdentity | None,
        interval_s: float,
        *,
        start_id: int = 0,
    ) -> None:
        self.start_id = start_id
        source_name = f"rank-{rank}"
        self._rank = rank
        self._log = DiagnosticLog(records_dir, rank=rank, source=source_name, start_id=start_id)
        self._nvml: Nvml | None = None
        self._gpu: GpuSource | None = None
        source: Source = HostSource(OwnProcess(), rank=rank) if identity is None else self._open_gpu(identity)
        path = records_dir / samples_file(source_name) if interval_s else None
        self._series = Series(source, path, start_id=start_id)
        self._is_threaded = interval_s > 0
        self._records_path = records_dir / memory_file(rank)
        self._records: RecordWriter | None = None
        self.sampler = Sampler([self._series], interval_s, self._log.say)

    @property
    def device(self) -> str:
        return self._series.source.device

    @property
    def peak_used_bytes(self) -> int | None:
        return self._series.peak_used_bytes

    def begin_phase(self, name: str) -> None:
        self._series.phase = name

    def at_step_edge(self) -> None:
        if self._gpu is not None:
            self._gpu.expects_own_process = True
        if self._is_threaded:
            self.sampler.go_on_after_fork()
        elif self._gpu is not None:
            self.sampler.look(is_full=False)

    def write(self, record: MemoryRecord) -> None:
        """Appends to records/memory-rank-N.jsonl."""
        if self._records is None:
            self._records = RecordWriter(self._records_path)
        self._records.write(record)

    def stop(self) -> None:
        self.sampler.stop()
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None
        if self._records is not None:
            self._records.close()
            self._records = None

    def start(self) -> None:
        if self._is_threaded:
            self.sampler.start()

    def _open_gpu(self, identity: DeviceIdentity) -> Source:
        device = identity.uuid or identity.pci_bus_id or CPU
        try:
            self._nvml = Nvml(self._log.say)
            self._gpu = GpuSource(self._nvml, identity, OwnProcess(), self._log.say, rank=self._rank)
        except NvmlError as error:
            self._log.say(error.diagnostic.about(device, MEMORY_FIELDS))
            return HostSource(OwnProcess(), device, rank=self._rank)
        return self._gpu
