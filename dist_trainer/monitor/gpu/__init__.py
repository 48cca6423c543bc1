"""The GPUs of this host: by NVML, on the PCI bus, and as CUDA numbers them; and why a figure is not known."""
