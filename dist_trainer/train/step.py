"""One optimizer step: N micro batches forward and backward, a check of the loss, one update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_trainer import blackbox
from dist_trainer.errors import RunError
from dist_trainer.train.loss_scale import loss_scale, scale_once

MicroBatch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class StepResult:
    """`loss`: mean over all ranks and micro batches. `learning_rate`: the rate that this step used."""

    loss: float
    grad_norm: float | None
    learning_rate: float
    loss_scale: float | None
    data_wait_s: float
    step_s: float


def train_step(
    engine: Any,
    batches: Iterator[MicroBatch],
    *,
    step: int,
    before_micro_batch: Callable[[], None] = lambda: None,
    before_update: Callable[[], None] = lambda: None,
) -> StepResult:
    """Takes one optimizer step on the next micro batches (int64 [micro_batch, sequence_length] inputs and targets).

    `before_update` is called before the optimizer changes anything. If `before_micro_batch` raises, what a checkpoint
    has of the engine, and the random states, are again what they were before the step.

    Raises RunError on every rank, before the weights change, if the mean loss is not finite; and on a rank whose device
    is out of memory, with what to try.
    """
    try:
        return _train_step(
            engine, batches, step=step, before_micro_batch=before_micro_batch, before_update=before_update
        )
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"out of memory in step {step}",
            key=f"step {step}",
            found=str(error).partition(". ")[0],
            hint=(
                "use --ds memory_saver, or --micro-batch 1 with a larger --accumulation, --checkpointing, more GPUs "
                "under --ds zero2, --set model.loss=fused, or --ds zero2_offload"
            ),
        ) from error


def _train_step(
    engine: Any,
    batches: Iterator[MicroBatch],
    *,
    step: int,
    before_micro_batch: Callable[[], None],
    before_update: Callable[[], None],
) -> StepResult:
    box = blackbox.own()
    started_s = time.perf_counter()
    data_wait_s = 0.0
    accumulation = engine.gradient_accumulation_steps()
    learning_rate = float(engine.get_lr()[0])
    loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device)
    beginning = _Beginning.of(engine) if accumulation > 1 else None
    for micro_step in range(accumulation):
        try:
            before_micro_batch()
        except BaseException:
            if beginning is not None:
                beginning.restore(engine)
            raise
        box.enter_micro_batch("waiting for data", step=step, micro_batch=micro_step + 1)
        waiting_s = time.perf_counter()
        inputs, targets = next(batches)
        data_wait_s += time.perf_counter() - waiting_s
        box.enter("forward")
        loss = engine(inputs.to(engine.device, non_blocking=True), targets.to(engine.device, non_blocking=True))
        loss_sum += loss.detach()
        last = micro_step == accumulation - 1
        if last:
            dist.all_reduce(loss_sum)
        scale_once(engine, loss)
        box.enter("backward")
        engine.backward(loss)
        if last:
            mean_loss = loss_sum.item() / (accumulation * dist.get_world_size())
            _stop_unless_finite(mean_loss, step=step, learning_rate=learning_rate)
            grad_norm = _unpartitioned_grad_norm(engine)
            before_update()
        box.enter("optimizer")
        engine.step()
    box.enter_micro_batch("after the update", step=step, micro_batch=0)
    if grad_norm is None:
        grad_norm = engine.get_global_grad_norm()
    return StepResult(
        loss=mean_loss,
        grad_norm=None if grad_norm is None else float(grad_norm),
        learning_rate=learning_rate,
        loss_scale=loss_scale(engine),
        data_wait_s=data_wait_s,
        step_s=time.perf_counter() - started_s,
    )


@dataclass(frozen=True)
class _Beginning:
    """What a step's micro batches change before its update, other than gradients."""

    micro_steps: int
    random: Tensor
    cuda_random: Tensor | None

    @classmethod
    def of(cls, engine: Any) -> _Beginning:
        on_cuda = engine.device.type == "cuda"
        return cls(engine.micro_steps, torch.get_rng_state(), torch.cuda.get_rng_state() if on_cuda else None)

    def restore(self, engine: Any) -> None:
        engine.micro_steps = self.micro_steps
        torch.set_rng_state(self.random)
        if self.cuda_random is not None:
            torch.cuda.set_rng_state(self.cuda_random)


def _stop_unless_finite(mean_loss: float, *, step: int, learning_rate: float) -> None:
    if math.isfinite(mean_loss):
        return
    raise RunError(
        f"the loss of step {step} is not finite; the weights were left as they were before this step",
        key=f"step {step}",
        found=mean_loss,
        hint=(
            f"lower the learning rate (it was {learning_rate:g}), set gradient_clipping to 1.0, use bf16 instead of "
            "fp16, or resume from a checkpoint with another --seed"
        ),
    )


def _unpartitioned_grad_norm(engine: Any) -> Tensor | None:
    """The fp32 gradients' 2-norm without ZeRO, where DeepSpeed keeps none; None if DeepSpeed's optimizer has one."""
    if engine.zero_optimization() or engine.fp16_enabled() or engine.bfloat16_enabled():
        return None
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


@torch.no_grad()
def evaluate(
    engine: Any, batches: Iterator[MicroBatch], *, before_micro_batch: Callable[[], None] = lambda: None
) -> float:
    """The mean loss over these micro batches and all ranks, with dropout off. Collective."""
    blackbox.own().enter("evaluation")
    engine.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for inputs, targets in batches:
        before_micro_batch()
        totals[0] += engine(inputs.to(engine.device), targets.to(engine.device))
        totals[1] += 1
    dist.all_reduce(totals)
    engine.train()
    return float(totals[0] / totals[1])
