"""Keeps DeepSpeed from taking an optimizer step before the first batch.

At stage 0 in 16-bit (fp16/fused_optimizer.py, unfused_optimizer.py) DeepSpeed allocates the optimizer's states by
taking a step with zero gradients while it builds the engine. That step counts and decays the weights: AdamW's master
weights lose a whole step's decay at the full rate, Adam's bias correction is one step ahead, and momenta are off. The
other stages allocate the states in the first real step, as torch's optimizers do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_blank_step() -> Iterator[None]:
    """An engine built in this block has taken no step, whatever its optimizer; its first step allocates the states."""
    from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    optimizers = (FP16_Optimizer, FP16_UnfusedOptimizer)
    steps = [optimizer.initialize_optimizer_states for optimizer in optimizers]
    for optimizer in optimizers:
        optimizer.initialize_optimizer_states = lambda self: None
    try:
        yield
    finally:
        for optimizer, step in zip(optimizers, steps, strict=True):
            optimizer.initialize_optimizer_states = step
