"""Builds the DeepSpeed engine around the model from a resolved run."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.errors import UserError
from dist_trainer.model.checkpointing import Checkpointing
from dist_trainer.model.gpt import GPT
from dist_trainer.train import grad_norm
from dist_trainer.train.blank_step import without_blank_step
from dist_trainer.train.loss_scale import grow_between_steps
from dist_trainer.train.schedule import scheduler_of
from dist_trainer.train.update_in_parts import update_in_parts


def checkpointing_of(deepspeed_config: dict[str, Any]) -> Checkpointing | None:
    """The `activation_checkpointing` block as settings of the model; the block's presence turns it on."""
    block = deepspeed_config.get("activation_checkpointing")
    if block is None:
        return None
    return Checkpointing(
        num_checkpoints=block.get("number_checkpoints"),
        cpu=block.get("cpu_checkpointing", False),
        synchronize=block.get("synchronize_checkpoint_boundary", False),
    )


def _refuse_one_leaf(engine: Any, resolved: ResolvedRun) -> None:
    """ZeRO-3 gathers a leaf module's parameters for its whole forward and frees them after it; of a model that is one
    leaf itself the backward finds freed parameters, and breaks off in torch.
    """
    from deepspeed.utils.z3_leaf_module import z3_leaf_module

    if not z3_leaf_module(engine.module):
        return
    zero = resolved.deepspeed["zero_optimization"]
    names = ("stage3_module_granularity_threshold", "leaf_module")
    name = next((name for name in names if zero.get(name)), names[0])
    raise UserError(
        "it makes the whole model one leaf module of ZeRO-3, with which DeepSpeed's backward breaks off",
        where=resolved.deepspeed_source,
        key=f"zero_optimization.{name}",
        found=zero.get(name),
        hint="lower the threshold until blocks become leaves, or remove it" if name == names[0] else "name blocks",
    )


def _reduce_nothing_alone(engine: Any) -> None:
    """Where one rank trains without ZeRO, DeepSpeed would copy all gradients into a flat tensor and back."""
    if dist.get_world_size() == 1 and not engine.zero_optimization():
        engine.enable_backward_allreduce = False


def build_engine(resolved: ResolvedRun, *, device_index: int) -> Any:
    """Builds the model with the run's seed and wraps it; weights are the same on every rank and at every ZeRO stage.

    Raises UserError where the JSON makes the whole model one leaf module of ZeRO-3.
    """
    import deepspeed

    torch.manual_seed(resolved.run.seed)
    model = GPT(resolved.run.model, checkpointing_of(resolved.deepspeed))
    with without_blank_step():
        engine, *_ = deepspeed.initialize(
            args=SimpleNamespace(device_rank=device_index),
            model=model,
            model_parameters=model.parameter_groups(),
            lr_scheduler=scheduler_of(resolved.deepspeed, source=resolved.deepspeed_source),
            config=copy.deepcopy(resolved.deepspeed),
        )
    _refuse_one_leaf(engine, resolved)
    _reduce_nothing_alone(engine)
    update_in_parts(engine)
    grow_between_steps(engine)
    grad_norm.take_once(engine)
    if resolved.deepspeed.get("compile") is not None and not resolved.run.compile_if_faster:
        engine.compile()
    return engine
