"""What a rank records of its own memory while it runs."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from dist_trainer.monitor.devices import DeviceIdentity
from dist_trainer.monitor.nvml import Nvml, NvmlError
from dist_trainer.monitor.processes import OwnProcess
from dist_trainer.monitor.sampler import Sampler
from dist_trainer.monitor.series import Series
from dist_trainer.monitor.sources import CPU, GpuSource, HostSource, Source
from dist_trainer.monitor.troubles import MEMORY_FIELDS, TroubleLog
from dist_trainer.records import samples_file


class RankSampler:
    """Samples the GPU of one rank into records/memory-samples-rank-N.jsonl; without a GPU the process's resident set.

    `identity` is the rank's GPU, None on a CPU: then NVML is not even loaded. With `interval_s` 0 there is neither
    thread nor file, and the GPU is looked at when a step ends. NVML that cannot be had is one event, and no failure.
    """

    def __init__(self, records_dir: Path, rank: int, identity: DeviceIdentity | None, interval_s: float) -> None:
        source_name = f"rank-{rank}"
        self._log = TroubleLog(records_dir, rank=rank, source=source_name)
        self._nvml: Nvml | None = None
        self._gpu: GpuSource | None = None
        source: Source = HostSource(OwnProcess()) if identity is None else self._open_gpu(identity)
        path = records_dir / samples_file(source_name) if interval_s else None
        self._series = Series(source, path)
        self._is_threaded = interval_s > 0
        self.sampler = Sampler([self._series], interval_s, self._log.say)

    @property
    def device(self) -> str:
        """The UUID of the GPU or MIG instance, or "cpu"."""
        return self._series.source.device

    @property
    def peak_used_bytes(self) -> int | None:
        """The most bytes in use on the device in any look so far."""
        return self._series.peak_used_bytes

    def at_step_edge(self) -> None:
        """To be called when a step has ended: by then a rank on a GPU has memory on it."""
        if self._gpu is not None:
            self._gpu.expects_own_process = True
        if self._is_threaded:
            self.sampler.go_on_after_fork()
        elif self._gpu is not None:
            self.sampler.look(is_full=False)

    def stop(self) -> None:
        """Ends the thread and this use of NVML. May be called again."""
        self.sampler.stop()
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None

    def __enter__(self) -> RankSampler:
        if self._is_threaded:
            self.sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _open_gpu(self, identity: DeviceIdentity) -> Source:
        device = identity.uuid or identity.pci_bus_id or CPU
        try:
            self._nvml = Nvml(self._log.say)
            self._gpu = GpuSource(self._nvml, identity, OwnProcess(), self._log.say)
        except NvmlError as error:
            self._log.say(error.trouble.about(device, MEMORY_FIELDS))
            return HostSource(OwnProcess(), device)
        return self._gpu
