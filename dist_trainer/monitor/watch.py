"""What `monitor` records of any program while it runs: every GPU that the program can see, and its process tree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dist_trainer.monitor.gpu import diagnostics as diagnostics
from dist_trainer.monitor.gpu.devices import DeviceIdentity, list_gpus
from dist_trainer.monitor.gpu.diagnostics import MEMORY_FIELDS, Diagnostic, DiagnosticLog
from dist_trainer.monitor.gpu.nvml import Nvml, NvmlError
from dist_trainer.monitor.gpu.pci import has_nvidia_gpu
from dist_trainer.monitor.gpu.visible import visible_devices
from dist_trainer.monitor.processes import ProcessTree
from dist_trainer.monitor.sampler import Sampler
from dist_trainer.monitor.series import Series
from dist_trainer.monitor.sources import GpuSource, HostSource, Source
from dist_trainer.records import samples_file

HOST = "host"


class Watch:
    """Samples each visible GPU into a series gpu-N (N as the program numbers them), or, without any, the host's memory.

    `sampler` is not started yet, and `tree` follows no process yet. If NVML is not available, one event says so, except
    on a host without an NVIDIA GPU.
    """

    def __init__(self, records_dir: Path, environ: Mapping[str, str], interval_s: float) -> None:
        self.tree = ProcessTree()
        self.problems: list[str] = []
        self._log = DiagnosticLog(records_dir, rank=0, source=HOST)
        self._nvml: Nvml | None = None
        sources = self._gpus(environ) or {HOST: HostSource(self.tree)}
        self.series = {name: Series(source, records_dir / samples_file(name)) for name, source in sources.items()}
        self.sampler = Sampler(list(self.series.values()), interval_s, self.say)

    def say(self, diagnostic: Diagnostic) -> None:
        self.problems.append(diagnostic.message)
        self._log.say(diagnostic)

    def close(self) -> None:
        self.sampler.stop()
        if self._nvml is not None:
            self._nvml.close()

    def _gpus(self, environ: Mapping[str, str]) -> dict[str, Source]:
        try:
            self._nvml = Nvml(self.say)
            visible = visible_devices(list_gpus(self._nvml, self.say), environ)
        except NvmlError as error:
            diagnostic = error.diagnostic
            if diagnostic.kind != diagnostics.LIBRARY_MISSING or has_nvidia_gpu():
                self.say(diagnostic)
            return {}
        if visible.problem is not None:
            self.say(Diagnostic(diagnostics.DEVICES_UNKNOWN, visible.problem))
        sources: dict[str, Source] = {}
        for position, device in enumerate(visible.devices):
            try:
                source = GpuSource(self._nvml, DeviceIdentity(device.uuid), self.tree, self.say)
            except NvmlError as error:
                self.say(error.diagnostic.about(device.uuid, MEMORY_FIELDS))
                continue
            sources[f"gpu-{position}"] = source
        return sources
