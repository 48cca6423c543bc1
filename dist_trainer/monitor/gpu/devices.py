"""The GPUs of this host, found by UUID or PCI bus id, never by a CUDA index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dist_trainer.monitor.gpu import diagnostics as diagnostics
from dist_trainer.monitor.gpu.diagnostics import MEMORY_FIELDS, Diagnostic, Say
from dist_trainer.monitor.gpu.nvml import AbsentError, FailedError, LostError, Nvml


@dataclass(frozen=True)
class DeviceIdentity:
    """What is known of a GPU or a MIG instance without NVML. `uuid` may lack its prefix: torch reports it without."""

    uuid: str | None
    pci_bus_id: str | None = None


@dataclass(frozen=True)
class MigInstance:
    uuid: str
    gpu_instance: int
    compute_instance: int


@dataclass(frozen=True)
class Gpu:
    """One GPU of this host. `index` is NVML's, in the order of PCI bus ids. `instances`: its MIG instances, if any."""

    index: int
    uuid: str
    pci_bus_id: str
    name: str
    instances: tuple[MigInstance, ...] = ()


@dataclass(frozen=True)
class FoundDevice:
    """A device with its NVML handle, which is valid until NVML is initialised again."""

    handle: Any
    uuid: str
    name: str
    is_mig_instance: bool


def list_gpus(nvml: Nvml, say: Say) -> list[Gpu]:
    """All GPUs of this host that answer; the others are reported. Raises NvmlError when NVML cannot list devices."""
    gpus = []
    for index in range(nvml.ask("nvmlDeviceGetCount")):
        try:
            handle = nvml.ask("nvmlDeviceGetHandleByIndex", index)
            uuid = _text(nvml.ask("nvmlDeviceGetUUID", handle))
            gpus.append(
                Gpu(
                    index=index,
                    uuid=uuid,
                    pci_bus_id=_text(nvml.ask("nvmlDeviceGetPciInfo", handle).busId),
                    name=_text(nvml.ask("nvmlDeviceGetName", handle)),
                    instances=tuple(_instances(nvml, handle)),
                )
            )
        except (AbsentError, FailedError, LostError) as error:
            device = f"GPU {index} of this host"
            diagnostic = error.diagnostic
            say(diagnostic.about(device, MEMORY_FIELDS, message=f"{device}: {diagnostic.message}"))
    return gpus


def find_device(nvml: Nvml, identity: DeviceIdentity) -> FoundDevice:
    """Finds the device by its UUID, else by its PCI bus id. Raises NvmlError if NVML has no such device.

    A GPU divided by MIG is not returned: its memory is not that of the instance that the process runs on.
    """
    handle = None
    for uuid in _spellings(identity.uuid):
        try:
            handle = nvml.ask("nvmlDeviceGetHandleByUUID", uuid.encode())
            break
        except (AbsentError, FailedError) as error:
            if error.diagnostic.kind == diagnostics.NO_PERMISSION:
                raise
    if handle is None and identity.pci_bus_id is not None:
        try:
            handle = nvml.ask("nvmlDeviceGetHandleByPciBusId", identity.pci_bus_id.encode())
        except AbsentError:
            handle = None
    wanted = identity.uuid or identity.pci_bus_id or "?"
    if handle is None:
        message = f"NVML knows no device {wanted}"
        raise FailedError(Diagnostic(diagnostics.DEVICE_NOT_FOUND, message, wanted, MEMORY_FIELDS))
    is_mig_instance = _is_mig_instance(nvml, handle)
    if not is_mig_instance and any(_instances(nvml, handle)):
        message = f"MIG is on on GPU {wanted}, and which of its instances is in use is not known"
        raise FailedError(Diagnostic(diagnostics.MIG, message, wanted, MEMORY_FIELDS))
    return FoundDevice(
        handle=handle,
        uuid=_text(nvml.ask("nvmlDeviceGetUUID", handle)),
        name=_text(nvml.ask("nvmlDeviceGetName", handle)),
        is_mig_instance=is_mig_instance,
    )


def _spellings(uuid: str | None) -> tuple[str, ...]:
    if uuid is None:
        return ()
    if uuid.startswith(("GPU-", "MIG-")):
        return (uuid,)
    return (f"GPU-{uuid}", f"MIG-{uuid}")


def _is_mig_instance(nvml: Nvml, handle: Any) -> bool:
    try:
        return bool(nvml.ask("nvmlDeviceIsMigDeviceHandle", handle).value)
    except (AbsentError, FailedError):
        return False


def _instances(nvml: Nvml, handle: Any) -> Iterator[MigInstance]:
    try:
        if not nvml.ask("nvmlDeviceGetMigMode", handle)[0]:
            return
        count = nvml.ask("nvmlDeviceGetMaxMigDeviceCount", handle)
    except (AbsentError, FailedError):
        return
    for index in range(count):
        try:
            instance = nvml.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
            yield MigInstance(
                uuid=_text(nvml.ask("nvmlDeviceGetUUID", instance)),
                gpu_instance=nvml.ask("nvmlDeviceGetGpuInstanceId", instance),
                compute_instance=nvml.ask("nvmlDeviceGetComputeInstanceId", instance),
            )
        except (AbsentError, FailedError):
            continue


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
