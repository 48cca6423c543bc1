"""Stage 0 in 16-bit: fp32 gradients of a few parameters at a time, where DeepSpeed first makes those of all.

DeepSpeed's optimizer for masters of single parameters (fp16/unfused_optimizer.py) copies all gradients to fp32, updates
all masters, then copies them to the weights. Here each of these is done for one part of the parameters before the next
part, so that 4 bytes a parameter are not needed, and a CPU finds in its cache what it has just written. The numbers are
the same. docs/performance.md says what that is worth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dist_trainer.memory.engines.partitions import parts_of

_Part = list[tuple[Tensor, Tensor]]


def update_in_parts(engine: Any) -> None:
    """To be called once, when the engine is built, and before anything else wraps the optimizer's step."""
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    optimizer = engine.optimizer
    if isinstance(optimizer, FP16_UnfusedOptimizer) and takes_parts(optimizer.optimizer):
        optimizer.step = lambda closure=None: _step(optimizer)


def takes_parts(optimizer: Any) -> bool:
    """Whether its step treats each parameter by itself, as all of torch's do. DeepSpeed's count steps by group."""
    return type(optimizer).__module__.startswith("torch.optim.")


@torch.no_grad()
def _step(optimizer: Any) -> bool:
    """FP16_UnfusedOptimizer.step: whether the step was skipped, because gradients are not finite."""
    from deepspeed.runtime.fp16 import unfused_optimizer
    from deepspeed.runtime.utils import get_global_norm, is_invalid_grad_norm

    optimizer.overflow = False
    norms = [
        unfused_optimizer.get_weight_norm([weight.grad for weight in group if weight.grad is not None])
        for group in optimizer.fp16_groups
    ]
    optimizer._global_grad_norm = get_global_norm(norm_list=norms)
    if is_invalid_grad_norm(optimizer._global_grad_norm):
        return bool(optimizer._skip_invalid_grad_norm())
    optimizer._update_scale(False)
    scale = float(optimizer.unscale_and_clip_grads(optimizer._global_grad_norm, apply_scale=False))
    groups = optimizer.optimizer.param_groups
    masters = [group["params"] for group in groups]
    try:
        for group in groups:
            group["params"] = []
        for group, weights, held in zip(groups, optimizer.fp16_groups, masters, strict=True):
            for part in parts_of([weight.numel() for weight in weights]):
                group["params"] = held[part]
                _update(optimizer.optimizer, list(zip(weights[part], held[part], strict=True)), scale)
            group["params"] = []
    finally:
        for group, held in zip(groups, masters, strict=True):
            group["params"] = held
    return False


def _update(optimizer: Any, part: _Part, scale: float) -> None:
    for weight, master in part:
        if weight.grad is None:
            master.grad = torch.zeros_like(master)
            continue
        master.grad, weight.grad = weight.grad.to(master.dtype), None
        if scale != 1.0:
            master.grad.mul_(1.0 / scale)
    optimizer.step()
    for weight, master in part:
        master.grad = None
        weight.copy_(master)
