"""Memory hygiene: keeps the garbage collector out of imports and steps; empties the allocator's cache if asked to."""

from __future__ import annotations

import gc
from typing import Any

import torch

from dist_trainer.config.run import MemoryConfig


def end_imports() -> None:
    """Turns the garbage collector on, and exempts the half a million objects of the imported modules (gc.freeze)."""
    # Imported now, because the constructor of every optimizer imports it.
    import torch._dynamo  # noqa: F401

    gc.freeze()
    gc.enable()


def settle(engine: Any) -> None:
    """Before the first step: collects what start-up left behind, and exempts what remains from later collections."""
    gc.collect()
    empty_cache()
    if engine.config.get("disable_python_gc"):
        gc.freeze()


def after_step(engine: Any, config: MemoryConfig, step: int) -> None:
    """Collects at the run file's interval, if the JSON's `disable_python_gc` has turned automatic collection off."""
    if engine.config.get("disable_python_gc") and _due(config.gc_every_steps, step):
        engine.collect_python_gc()
    if _due(config.empty_cache_every_steps, step):
        empty_cache()


def empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _due(every_steps: int, step: int) -> bool:
    return every_steps > 0 and step % every_steps == 0
