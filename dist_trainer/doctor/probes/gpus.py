"""The GPUs of this host: what NVML reports, and what the kernel shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_trainer.doctor.facts import Device, GpuFacts, GpuProcess, HostGpus
from dist_trainer.monitor.gpu import diagnostics
from dist_trainer.monitor.gpu.devices import DeviceIdentity, Gpu, list_gpus
from dist_trainer.monitor.gpu.diagnostics import Diagnostic, Say
from dist_trainer.monitor.gpu.nvml import AbsentError, Nvml, NvmlError
from dist_trainer.monitor.gpu.pci import PCI_DEVICES, kernel_address, nvidia_gpus
from dist_trainer.monitor.gpu.visible import visible_devices
from dist_trainer.records import DeviceSample

# Under WSL a GPU appears as this device and not on the PCI bus.
_WSL_GPU = Path("/dev/dxg")


def find_gpus(environ: Mapping[str, str], pci_devices: Path = PCI_DEVICES) -> HostGpus:
    """`environ`: its CUDA_VISIBLE_DEVICES decides which GPUs a program sees."""
    kernel = None if _WSL_GPU.exists() or not pci_devices.is_dir() else nvidia_gpus(pci_devices)
    said: list[str] = []

    def say(trouble: Diagnostic) -> None:
        if trouble.kind != diagnostics.INITIALISED_AGAIN:
            said.append(trouble.message)

    try:
        nvml = Nvml(say)
    except ImportError:
        return HostGpus(kernel=kernel, trouble="nvidia-ml-py is not installed")
    except NvmlError as error:
        return HostGpus(
            kernel=kernel,
            has_library=error.diagnostic.kind != diagnostics.LIBRARY_MISSING,
            trouble=error.diagnostic.message,
        )
    try:
        found = list_gpus(nvml, say)
        visible = visible_devices(found, environ)
        samples = {gpu.uuid: _look(nvml, gpu.uuid, say) for gpu in found if not gpu.instances}
        devices = tuple(
            _device(device.uuid, device.name, samples.get(device.uuid) or _look(nvml, device.uuid, say))
            for device in visible.devices
        )
        return HostGpus(
            driver=_text(_asked(nvml, "nvmlSystemGetDriverVersion", say)),
            driver_cuda=_cuda_version(_asked(nvml, "nvmlSystemGetCudaDriverVersion_v2", say)),
            num_said=nvml.ask("nvmlDeviceGetCount"),
            gpus=tuple(_facts(nvml, gpu, samples.get(gpu.uuid), pci_devices, say) for gpu in found),
            devices=devices,
            devices_problem=visible.problem,
            kernel=kernel,
            has_library=True,
            troubles=tuple(dict.fromkeys(said)),
        )
    except NvmlError as error:
        return HostGpus(kernel=kernel, has_library=True, trouble=error.diagnostic.message, troubles=tuple(said))
    finally:
        nvml.close()


def _facts(nvml: Nvml, gpu: Gpu, sample: DeviceSample | None, pci_devices: Path, say: Say) -> GpuFacts:
    handle = nvml.ask("nvmlDeviceGetHandleByIndex", gpu.index)
    mode = _asked(nvml, "nvmlDeviceGetPersistenceMode", say, handle)
    known: dict[str, Any] = {}
    if sample is not None:
        names = ("total_bytes", "used_bytes", "ecc_errors", "throttle_reasons", "temperature_c")
        known = {name: getattr(sample, name) for name in names}
    return GpuFacts(
        index=gpu.index,
        uuid=gpu.uuid,
        pci_bus_id=gpu.pci_bus_id,
        name=gpu.name,
        is_persistent=None if mode is None else bool(mode),
        num_instances=len(gpu.instances),
        processes=_processes(nvml, handle, say),
        numa_node=_numa_node(pci_devices / kernel_address(gpu.pci_bus_id)),
        **known,
    )


def _look(nvml: Nvml, uuid: str, say: Say) -> DeviceSample | None:
    from dist_trainer.monitor.processes import OwnProcess
    from dist_trainer.monitor.sources import GpuSource

    try:
        source = GpuSource(nvml, DeviceIdentity(uuid), OwnProcess(), _but_of_processes(say))
    except NvmlError as error:
        say(error.diagnostic)
        return None
    try:
        return source.look(is_full=True)
    finally:
        source.close()


def _but_of_processes(say: Say) -> Say:
    """Drops two diagnostics that are normal here: this process holds no GPU memory, and a GPU may have MIG on."""

    def say_others(trouble: Diagnostic) -> None:
        if trouble.kind not in (diagnostics.PROCESSES_NOT_VISIBLE, diagnostics.MIG):
            say(trouble)

    return say_others


def _device(uuid: str, name: str, sample: DeviceSample | None) -> Device:
    return Device(uuid, name) if sample is None else Device(uuid, name, sample.total_bytes, sample.used_bytes)


def _processes(nvml: Nvml, handle: Any, say: Say) -> tuple[GpuProcess, ...]:
    found: dict[int, GpuProcess] = {}
    for call in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
        for process in _asked(nvml, call, say, handle) or ():
            found[process.pid] = GpuProcess(process.pid, _process_name(process.pid), process.usedGpuMemory)
    return tuple(found[pid] for pid in sorted(found))


def _process_name(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return f"{process.name()} of {process.username()}"
    except psutil.Error:
        return None


def _numa_node(device: Path) -> int | None:
    try:
        number = int((device / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return number if number >= 0 else None


def _asked(nvml: Nvml, call: str, say: Say, *arguments: Any) -> Any:
    """NVML's answer, or None: silently if the device or driver does not have it, else with the reason reported."""
    try:
        return nvml.ask(call, *arguments)
    except AbsentError:
        return None
    except NvmlError as error:
        say(error.diagnostic)
        return None


def _cuda_version(number: int | None) -> str | None:
    """12080 -> '12.8'."""
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"


def _text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
