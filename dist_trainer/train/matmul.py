"""The precision in which fp32 matrices are multiplied, which is a choice of the run file and never torch's default."""

from __future__ import annotations

from typing import Literal

import torch

from dist_trainer.config.adapt import DeviceFacts
from dist_trainer.config.deepspeed.rules import precision
from dist_trainer.config.resolve import ResolvedRun

Matmul = Literal["fp32", "tf32", "bf32"]
# TF32 came with Ampere.
_TF32_CAPABILITY = (8, 0)
_PROBE_SIZE = 256


def choose(resolved: ResolvedRun, device: DeviceFacts, fast: Matmul | None) -> tuple[Matmul, str | None]:
    """The precision to use, and a notice if it is not the one asked for. `fast`: what the device has beside fp32."""
    asked, weights = resolved.run.matmul, precision(resolved.deepspeed)
    if asked == "auto":
        return (fast if fast is not None and weights == "fp32" else "fp32"), None
    if asked == "fp32":
        return asked, None
    if weights != "fp32":
        return "fp32", f"matmul {asked} does nothing: weights and activations are {weights}, not fp32"
    if asked != fast:
        return "fp32", f"matmul {asked} is not supported by {device.name}: fp32 runs instead"
    return asked, None


def fast_here(kind: Literal["cpu", "cuda"]) -> Matmul | None:
    """TF32 on GPUs that have it; bf32 on CPUs on which oneDNN really rounds the factors of an fp32 product to bf16."""
    if kind == "cuda":
        return "tf32" if torch.cuda.get_device_capability(0) >= _TF32_CAPABILITY else None
    return "bf32" if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _rounds_factors() else None


def _rounds_factors() -> bool:
    """By a product whose factors are 1 + 2^-10, which is 1 in bf16: with AVX512-BF16 but without AMX oneDNN takes the
    setting and multiplies in fp32 all the same, more slowly than without it.
    """
    before = torch.get_float32_matmul_precision()
    factor = torch.full((_PROBE_SIZE, _PROBE_SIZE), 1 + 2**-10)
    try:
        torch.set_float32_matmul_precision("medium")
        product = factor @ factor
    finally:
        torch.set_float32_matmul_precision(before)
    return bool((product - _PROBE_SIZE).abs().max() < 2**-10)


def set_in_torch(matmul: Matmul) -> None:
    """Sets it for all fp32 products of this process. torch calls TF32 on GPUs `high`, and bf32 on CPUs `medium`."""
    torch.set_float32_matmul_precision("highest" if matmul == "fp32" else "medium" if matmul == "bf32" else "high")
