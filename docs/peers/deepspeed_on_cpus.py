"""Accelerate, and Trainer above it, with DeepSpeed on CPUs: asked for the CPU, both leave DeepSpeed out in silence."""

from __future__ import annotations

import os
from typing import Any

import deepspeed
from accelerate import PartialState


def join() -> None:
    """Joins the ranks by gloo as ranks of DeepSpeed. To be called before either of the two is set up."""
    # For inference only, and compiled for half a minute at the first start; dist_trainer leaves it out too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")


def check(model: Any) -> None:
    """Raises RuntimeError unless it is DeepSpeed's engine: the comparison would be of something else."""
    if not isinstance(model, deepspeed.DeepSpeedEngine):
        raise RuntimeError(f"trained by {type(model).__name__}, not by DeepSpeed's engine")
