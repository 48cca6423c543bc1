"""The NVIDIA GPUs that the kernel lists on the PCI bus, with or without a driver for them."""

from __future__ import annotations

from pathlib import Path

PCI_DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA_VENDOR = "0x10de"
_DISPLAY_CLASS = "0x03"


def nvidia_gpus(pci_devices: Path = PCI_DEVICES) -> tuple[str, ...]:
    """Their PCI addresses, such as '0000:3b:00.0', in ascending order."""
    found = []
    for device in pci_devices.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == _NVIDIA_VENDOR and kind.startswith(_DISPLAY_CLASS):
            found.append(device.name)
    return tuple(sorted(found))


def has_nvidia_gpu(pci_devices: Path = PCI_DEVICES) -> bool:
    return bool(nvidia_gpus(pci_devices))


def kernel_address(pci_bus_id: str) -> str:
    """NVML's '00000000:3B:00.0' as the kernel writes it: '0000:3b:00.0'."""
    domain, _, rest = pci_bus_id.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"
