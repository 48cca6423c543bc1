"""The GPUs of this host, by NVML, on the PCI bus and as CUDA numbers them; what keeps a figure from being known."""
