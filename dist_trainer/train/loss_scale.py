"""fp16's loss scale, applied once and taken out once: DeepSpeed 0.19.8 does not always.

At stage 0 the engine's backward leaves the scale out, and the optimizer's step divides by it all the same: gradients
would come out 65,536 times too small, and never be clipped. At every stage the step in which the scale grows is divided
by the grown scale: that update would be halved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def loss_scale(engine: Any) -> float | None:
    """The scale of the next backward; None where there is none."""
    if not engine.fp16_enabled():
        return None
    return float(engine.optimizer.loss_scale)


def scale_once(engine: Any, loss: Tensor) -> None:
    """To be called before each `engine.backward(loss)`.

    Says what gradient the loss itself is to have, and does not multiply, so that it stays right with a DeepSpeed whose
    backward scales.
    """
    scale = loss_scale(engine)
    if scale is None or engine.zero_optimization():
        return
    gradient = scale / engine.gradient_accumulation_steps()
    loss.register_hook(lambda arriving: torch.full_like(arriving, gradient))  # type: ignore[no-untyped-call]


def grow_between_steps(engine: Any) -> None:
    """Lets the scale grow when the step is done; to be called once, when the engine is built.

    Where the gradients overflow the step ends with the scale, and nothing is divided any more. Also takes the scale out
    of the norm that is reported where DeepSpeed forgets that (fp16/unfused_optimizer.py).
    """
    if not engine.fp16_enabled():
        return
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    optimizer = engine.optimizer
    update_scale, step = optimizer._update_scale, optimizer.step
    grows = False

    def remember(overflows: bool) -> None:
        nonlocal grows
        grows = not overflows
        if overflows:
            update_scale(overflows)

    def step_then_grow(*arguments: Any, **named: Any) -> Any:
        nonlocal grows
        grows = False
        result = step(*arguments, **named)
        if isinstance(optimizer, FP16_UnfusedOptimizer):
            optimizer._global_grad_norm /= optimizer.loss_scale
        if grows:
            update_scale(False)
        return result

    optimizer._update_scale, optimizer.step = remember, step_then_grow
