"""fp16's loss scale, multiplied in once and divided out once, which DeepSpeed 0.19.8 does not always do.

At stage 0 the engine's backward does not apply the scale, but the optimizer's step divides by it: gradients would be
65,536 times too small, and would never be clipped. At every stage, the step in which the scale grows is divided by the
grown scale: that update would be halved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# The attribute's name in ZeRO's optimizers, and in those without ZeRO; and what of it changes from step to step.
_SCALERS = ("loss_scaler", "loss_scale_config")
_REACHED = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def loss_scale(engine: Any) -> float | None:
    """The scale of the next backward pass; None without loss scaling."""
    if not engine.fp16_enabled():
        return None
    return float(engine.optimizer.loss_scale)


def scale_once(engine: Any, loss: Tensor) -> None:
    """To be called before each `engine.backward(loss)`.

    It sets the gradient of the loss instead of multiplying the loss, so the result stays correct with a DeepSpeed whose
    backward does apply the scale.
    """
    scale = loss_scale(engine)
    if scale is None or engine.zero_optimization():
        return
    gradient = scale / engine.gradient_accumulation_steps()
    loss.register_hook(lambda arriving: torch.full_like(arriving, gradient))  # type: ignore[no-untyped-call]


def grow_between_steps(engine: Any) -> None:
    """Makes the scale grow only after the step is done; to be called once, when the engine is built.

    If gradients overflow, the step ends with the change of scale, and no division follows. Also divides the scale out
    of the reported norm where DeepSpeed forgets that (fp16/unfused_optimizer.py).
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


def scaler_state(engine: Any) -> dict[str, float]:
    """How far a dynamic loss scale has come; empty without one."""
    scaler = _dynamic_scaler(engine)
    return {} if scaler is None else {name: float(getattr(scaler, name)) for name in _REACHED if hasattr(scaler, name)}


def restore_scaler(engine: Any, state: Mapping[str, float]) -> None:
    """Sets what `scaler_state` read; the settings, and a scale that does not change, stay as they are."""
    scaler = _dynamic_scaler(engine)
    if scaler is None:
        return
    for name in state.keys() & set(_REACHED):
        if hasattr(scaler, name):
            setattr(scaler, name, type(getattr(scaler, name))(state[name]))


def _dynamic_scaler(engine: Any) -> Any:
    if not engine.fp16_enabled():
        return None
    scaler = next(getattr(engine.optimizer, name) for name in _SCALERS if hasattr(engine.optimizer, name))
    return scaler if getattr(scaler, "dynamic", False) or getattr(scaler, "dynamic_loss_scale", False) else None
