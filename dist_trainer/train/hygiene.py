"""Memory hygiene: the garbage collector out of the imports and the step, the allocator's cache emptied when asked."""

from __future__ import annotations

import gc
from typing import Any

import torch

from dist_trainer.config.run import MemoryConfig


def end_imports() -> None:
    """The collector is on again, and never looks at the half a million objects of the modules, which all stay."""
    # Every optimizer's constructor brings it.
    import torch._dynamo  # noqa: F401

    gc.freeze()
    gc.enable()


def settle(engine: Any) -> None:
    """Before the first step: what start-up left behind is collected, what stays is never looked at again."""
    gc.collect()
    empty_cache()
    if engine.config.get("disable_python_gc"):
        gc.freeze()


def after_step(engine: Any, config: MemoryConfig, step: int) -> None:
    """Collects at the run file's interval if the JSON's `disable_python_gc` keeps the collector out of the steps."""
    if engine.config.get("disable_python_gc") and _due(config.gc_every_steps, step):
        engine.collect_python_gc()
    if _due(config.empty_cache_every_steps, step):
        empty_cache()


def empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _due(every_steps: int, step: int) -> bool:
    return every_steps > 0 and step % every_steps == 0
