"""The norm of the gradients: one look at them instead of DeepSpeed's two, and no copy of them in fp64.

Before it takes the norm, DeepSpeed looks through all gradients for a value that is not finite. Of such gradients the
norm isn't finite either, and by that DeepSpeed skips the step as well. The norm it takes of a copy in fp64 of one
gradient at a time (309 MB for the largest of GPT-2 Small) or, at stage 0, in fp32. Here it is taken in fp32, as
`torch.nn.utils.clip_grad_norm_` takes it, and without a copy. docs/performance.md says what that is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Elements of 16-bit gradients that a CPU takes the norm of at a time, in an fp32 copy (4 MiB) that its cache holds.
_ELEMENTS = 2**20


def take_once(engine: Any) -> None:
    """To be called once, when the engine is built. fp32 instead of fp64 holds for all engines of this process."""
    from deepspeed.runtime.fp16 import unfused_optimizer
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    for module in (stage_1_and_2, stage3):
        module.get_norm_dtype = lambda: torch.float32
    unfused_optimizer.get_weight_norm = _weight_norm
    optimizer = engine.optimizer
    if isinstance(optimizer, unfused_optimizer.FP16_UnfusedOptimizer):
        optimizer.overflow_checker.check = lambda param_groups=None: False
    elif type(optimizer) is stage_1_and_2.DeepSpeedZeroOptimizer and not optimizer.cpu_offload:
        optimizer.get_grad_norm_direct = _norm_over(optimizer.dp_process_group)
        if optimizer.compute_grad_norm:
            optimizer.check_overflow = lambda partition_gradients=True: None
    elif type(optimizer) is stage3.DeepSpeedZeroOptimizer_Stage3:
        optimizer.get_grad_norm_direct = _norm_over(optimizer.dp_process_group)


def _norm_over(group: Any) -> Callable[..., Tensor]:
    """DeepSpeed's `get_grad_norm_direct`: of the gradients that the ranks of a group share; -1 if it is not finite."""

    def norm(gradients: Iterable[Tensor], params: Sequence[Tensor], norm_type: float = 2) -> Tensor:
        total = norm_of(gradients).square()
        dist.all_reduce(total, group=group)
        return torch.where(total.isfinite(), total.sqrt(), -1.0)

    return norm


def _weight_norm(parameters: Iterable[Tensor], norm_type: float = 2, mpu: Any = None) -> float:
    """DeepSpeed's `get_weight_norm`, which answers -1 where the norm is not finite."""
    norm = norm_of(parameters).item()
    return norm if math.isfinite(norm) else -1.0


def norm_of(tensors: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all tensors together, an fp32 scalar on their device."""
    norms = [_norm(tensor.detach()) for tensor in tensors]
    return _norm(torch.stack(norms)) if norms else torch.zeros(())


def _norm(tensor: Tensor) -> Tensor:
    if tensor.is_cuda or tensor.dtype == torch.float32:
        norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float32)
        return norm
    parts = torch.split(tensor.reshape(-1), _ELEMENTS)
    return _norm(torch.stack([_norm(part.float()) for part in parts]))
