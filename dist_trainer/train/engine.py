"""From a resolved run to a DeepSpeed engine around the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from dist_trainer.config.deepspeed.params import DEEPSPEED_SCHEDULERS
from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.model.checkpointing import Checkpointing
from dist_trainer.model.gpt import GPT


def checkpointing_of(deepspeed_config: dict[str, Any]) -> Checkpointing | None:
    """The `activation_checkpointing` block as settings of the model; a block that is there means on."""
    block = deepspeed_config.get("activation_checkpointing")
    if block is None:
        return None
    return Checkpointing(
        num_checkpoints=block.get("number_checkpoints"),
        cpu=block.get("cpu_checkpointing", False),
        synchronize=block.get("synchronize_checkpoint_boundary", False),
    )


def torch_scheduler_of(deepspeed_config: dict[str, Any]) -> Callable[[Any], Any] | None:
    """A maker of torch's scheduler, where the JSON names one of torch's; None where DeepSpeed makes its own.

    DeepSpeed hands a scheduler named in the JSON its own wrapped optimizer, which torch's schedulers refuse.
    """
    block = deepspeed_config.get("scheduler")
    if block is None or block["type"] in DEEPSPEED_SCHEDULERS:
        return None
    scheduler = getattr(torch.optim.lr_scheduler, block["type"])
    return lambda optimizer: scheduler(optimizer, **block["params"])


def build_engine(resolved: ResolvedRun, *, device_index: int) -> Any:
    """Builds the model with the run's seed and wraps it; the same weights on every rank and at every ZeRO stage.

    Returns a `deepspeed.DeepSpeedEngine` whose optimizer, scheduler, precision and ZeRO stage come from the JSON.
    """
    import deepspeed

    torch.manual_seed(resolved.run.seed)
    model = GPT(resolved.run.model, checkpointing_of(resolved.deepspeed))
    engine, *_ = deepspeed.initialize(
        args=SimpleNamespace(device_rank=device_index),
        model=model,
        model_parameters=model.parameter_groups(),
        lr_scheduler=torch_scheduler_of(resolved.deepspeed),
        config=copy.deepcopy(resolved.deepspeed),
    )
    compile_block = resolved.deepspeed.get("compile")
    if compile_block is not None:
        engine.compile()
    return engine
