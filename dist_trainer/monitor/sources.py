"""Reads one sample of a GPU, or of the host's memory where there is no GPU."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection
from typing import Any, Protocol

import psutil

from dist_trainer.monitor.gpu import diagnostics as diagnostics
from dist_trainer.monitor.gpu.devices import DeviceIdentity, find_device
from dist_trainer.monitor.gpu.diagnostics import MEMORY_FIELDS, Diagnostic, Say
from dist_trainer.monitor.gpu.nvml import UNKNOWN, AbsentError, FailedError, LostError, Nvml
from dist_trainer.monitor.gpu.xid import XidWatch
from dist_trainer.monitor.processes import Processes
from dist_trainer.records import DeviceSample

CPU = "cpu"

# The bits of NVML's nvmlClocksEventReasons (called nvmlClocksThrottleReasons in drivers before 535).
_THROTTLE_REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
_SM_CLOCK = 1
_MEMORY_CLOCK = 2
_GPU_TEMPERATURE = 0
_UNCORRECTED = 1
_VOLATILE = 0
_EVERYTHING_OF_NVML = (
    *MEMORY_FIELDS,
    *("utilization_percent", "power_w", "temperature_c", "sm_clock_mhz", "memory_clock_mhz"),
    *("throttle_reasons", "ecc_errors", "xid_errors"),
)


class Source(Protocol):
    """Something that can be sampled repeatedly. `device`: the UUID of a GPU or a MIG instance, or "cpu"."""

    device: str

    def look(self, *, is_full: bool) -> DeviceSample | None:
        """Reads memory, and with `is_full` all other fields as well; None when there was nothing to read this time."""

    def close(self) -> None: ...


class HostSource:
    """Only the resident set of the processes."""

    def __init__(self, processes: Processes, device: str = CPU, *, rank: int | None = None) -> None:
        self.device = device
        self.name = "host memory"
        self._rank = rank
        self._processes = processes
        self._host = socket.gethostname()

    def look(self, *, is_full: bool) -> DeviceSample | None:
        rss_bytes = self._processes.rss_bytes()
        if rss_bytes is None:
            return None
        return DeviceSample(
            self._host, self.device, time.monotonic(), time.time(), rss_bytes=rss_bytes, rank=self._rank
        )

    def close(self) -> None:
        pass


class GpuSource:
    """A GPU or a MIG instance: the bytes in use on it, and how many of them the processes hold.

    A field that NVML cannot read is reported once and is None from then on. The list of processes is the slowest of
    NVML's answers, so it is read only in full looks and when the device's bytes have changed.
    """

    def __init__(
        self, nvml: Nvml, identity: DeviceIdentity, processes: Processes, say: Say, *, rank: int | None = None
    ) -> None:
        """`rank` is the rank that uses this GPU. Raises NvmlError when NVML cannot find the device."""
        found = find_device(nvml, identity)
        self.device = found.uuid
        self.name = found.name
        self.expects_own_process = False
        self._nvml = nvml
        self._processes = processes
        self._say = say
        self._rank = rank
        self._host = socket.gethostname()
        self._handle = found.handle
        self._generation = nvml.generation
        self._absent: set[str] = set()
        self._version: int | None = None
        self._is_lost = False
        self._used_bytes: int | None = None
        self._process_bytes: int | None = None
        self._has_seen_own = False
        self._foreign: frozenset[int] = frozenset()
        self._xids: XidWatch | None = None
        if found.is_mig_instance:
            message = "a MIG instance: its memory is read; what NVML says of the whole GPU alone is not"
            say(Diagnostic(diagnostics.MIG, message, self.device, _EVERYTHING_OF_NVML[len(MEMORY_FIELDS) :]))

    def look(self, *, is_full: bool) -> DeviceSample | None:
        if self._is_lost:
            return self._rss_alone() if is_full else None
        try:
            self._settle_handle()
            return self._look(is_full=is_full)
        except LostError as error:
            self._lose(error.diagnostic)
            return self._rss_alone()
        except (AbsentError, FailedError) as error:
            self._complain(error.diagnostic, MEMORY_FIELDS)
            return None

    def close(self) -> None:
        if self._xids is not None:
            self._xids.close()

    def _look(self, *, is_full: bool) -> DeviceSample:
        memory = self._memory()
        monotonic_s, time_s = time.monotonic(), time.time()
        used_bytes = None if memory is None else int(memory.used)
        if is_full or used_bytes != self._used_bytes:
            self._process_bytes = self._read_process_bytes()
        self._used_bytes = used_bytes
        return DeviceSample(
            host=self._host,
            device=self.device,
            monotonic_s=monotonic_s,
            time_s=time_s,
            used_bytes=used_bytes,
            used_version=None if memory is None else self._version,
            total_bytes=None if memory is None else int(memory.total),
            process_bytes=self._process_bytes,
            rank=self._rank,
            **(self._other_fields() if is_full else {}),
        )

    def _memory(self) -> Any:
        """Prefers version 2 of nvmlDeviceGetMemoryInfo, which, like nvidia-smi, does not count what the driver
        reserves. The version that answers first is used from then on, because figures of the two cannot be compared in
        a series.

        On WSL version 2 fails with an unknown error.
        """
        import pynvml

        call = "nvmlDeviceGetMemoryInfo"
        if self._version in (None, 2):
            try:
                memory = self._nvml.ask(call, self._handle, version=pynvml.nvmlMemory_v2)
                self._version = 2
                return memory
            except (AbsentError, FailedError) as error:
                is_of_version_2 = isinstance(error, AbsentError) or error.diagnostic.code == UNKNOWN
                if self._version == 2 or not is_of_version_2:
                    self._complain(error.diagnostic, ("used_bytes",))
                    return None
        memory = self._field(call, unknown="used_bytes")
        if memory is not None:
            self._version = 1
        return memory

    def _read_process_bytes(self) -> int | None:
        listed: dict[tuple[int, int, int], int | None] = {}
        lists = [
            self._field(call, unknown="process_bytes")
            for call in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
        ]
        if lists == [None, None]:
            return None
        for process in (process for known in lists if known is not None for process in known):
            # A process that both computes and draws is in both lists, each time with all its bytes.
            key = (process.pid, process.gpuInstanceId, process.computeInstanceId)
            listed[key] = process.usedGpuMemory
        pids = self._processes.pids()
        own = [used for (pid, _, _), used in listed.items() if pid in pids]
        if not own:
            self._look_for_reasons({pid for pid, _, _ in listed})
            return 0 if self._has_seen_own else None
        self._has_seen_own = True
        known = [used for used in own if used is not None]
        if len(known) < len(own):
            message = "the driver lists this process on the GPU, but not how many bytes it holds (N/A)"
            kind = diagnostics.PROCESS_BYTES_NOT_REPORTED
            self._say(Diagnostic(kind, message, self.device, ("process_bytes",)))
            return None
        return sum(known)

    def _look_for_reasons(self, listed: Collection[int]) -> None:
        """In a container with its own PID namespace the driver lists the host's process ids, or none at all."""
        foreign = frozenset(pid for pid in listed if not psutil.pid_exists(pid))
        # A process that has just ended may still be listed once: an id counts as foreign when two lists have it.
        is_foreign = bool(foreign & self._foreign)
        self._foreign = foreign
        if self._has_seen_own or not (self.expects_own_process or is_foreign):
            return
        message = (
            f"none of the {len(listed)} processes that the driver lists on the GPU is one of ours "
            f"({len(foreign)} have ids that do not exist here): in a container it lists the host's ids, or none"
        )
        self._say(Diagnostic(diagnostics.PROCESSES_NOT_VISIBLE, message, self.device, ("process_bytes",)))

    def _other_fields(self) -> dict[str, Any]:
        rates = self._field("nvmlDeviceGetUtilizationRates", unknown="utilization_percent")
        milliwatts = self._field("nvmlDeviceGetPowerUsage", unknown="power_w")
        return {
            "rss_bytes": self._processes.rss_bytes(),
            "utilization_percent": None if rates is None else int(rates.gpu),
            "power_w": None if milliwatts is None else milliwatts / 1000,
            "temperature_c": self._field("nvmlDeviceGetTemperature", _GPU_TEMPERATURE, unknown="temperature_c"),
            "sm_clock_mhz": self._field("nvmlDeviceGetClockInfo", _SM_CLOCK, unknown="sm_clock_mhz"),
            "memory_clock_mhz": self._field("nvmlDeviceGetClockInfo", _MEMORY_CLOCK, unknown="memory_clock_mhz"),
            "throttle_reasons": self._throttle_reasons(),
            "ecc_errors": self._field("nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _VOLATILE, unknown="ecc_errors"),
            "xid_errors": self._xid_errors(),
        }

    def _throttle_reasons(self) -> tuple[str, ...] | None:
        mask = self._field("nvmlDeviceGetCurrentClocksEventReasons", unknown="throttle_reasons")
        if mask is None:
            mask = self._field("nvmlDeviceGetCurrentClocksThrottleReasons", unknown="throttle_reasons")
        return None if mask is None else throttle_reasons(mask)

    def _xid_errors(self) -> tuple[int, ...] | None:
        """Xid codes since the last look; None where there were none."""
        if self._xids is None:
            self._xids = XidWatch(self._nvml, self._handle)
        codes = self._xids.poll()
        for code in codes:
            message = f"the driver reported Xid error {code}"
            self._say(Diagnostic(diagnostics.XID, message, self.device, call="nvmlEventSetWait_v2", code=code))
        return codes or None

    def _field(self, call: str, *arguments: Any, unknown: str) -> Any:
        """NVML's answer, or None. A field that the device lacks or that we may not read is not asked for again."""
        key = f"{call}{arguments}"
        if key in self._absent:
            return None
        try:
            return self._nvml.ask(call, self._handle, *arguments)
        except AbsentError:
            self._absent.add(key)
        except FailedError as error:
            if error.diagnostic.kind == diagnostics.NO_PERMISSION:
                self._absent.add(key)
            self._complain(error.diagnostic, (unknown,))
        return None

    def _complain(self, diagnostic: Diagnostic, unknown: tuple[str, ...]) -> None:
        # Initialising NVML again was reported where it happened, and only this one look is lost.
        if diagnostic.kind != diagnostics.INITIALISED_AGAIN:
            self._say(diagnostic.about(self.device, unknown))

    def _settle_handle(self) -> None:
        """NVML's handles and event sets are valid only until NVML is initialised again: renews them if it was."""
        if self._generation == self._nvml.generation:
            return
        self._handle = find_device(self._nvml, DeviceIdentity(self.device)).handle
        self._generation = self._nvml.generation
        self._xids = None

    def _lose(self, diagnostic: Diagnostic) -> None:
        self._is_lost = True
        # The driver may still report the Xid that explains the loss.
        if diagnostic.kind == diagnostics.GPU_LOST and self._xids is not None:
            try:
                self._xid_errors()
            except LostError:
                self._xids = None
        message = f"{diagnostic.message}; from here on nothing of this GPU is known, and the program goes on"
        self._say(diagnostic.about(self.device, _EVERYTHING_OF_NVML, message=message))

    def _rss_alone(self) -> DeviceSample | None:
        return HostSource(self._processes, self.device, rank=self._rank).look(is_full=True)


def throttle_reasons(mask: int) -> tuple[str, ...]:
    """The names of the bits that are set; the number of a bit that has no name here."""
    bits = [1 << place for place in range(mask.bit_length()) if mask >> place & 1]
    return tuple(_THROTTLE_REASONS.get(bit, hex(bit)) for bit in bits)
