"""The learning rate schedule: built from the JSON, and advanced to the step of a resumed run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from dist_trainer.config.deepspeed.params import DEEPSPEED_SCHEDULERS
from dist_trainer.errors import UserError
from dist_trainer.train import warmup


def scheduler_of(deepspeed_config: dict[str, Any], *, source: str) -> Callable[[Any], Any] | None:
    """A function that makes the JSON's scheduler for a given optimizer; None if the JSON names none.

    DeepSpeed would pass its wrapped optimizer to torch's schedulers, which refuse it, so all are made here. The
    function raises UserError for parameters that the scheduler refuses.
    """
    block = deepspeed_config.get("scheduler")
    if block is None:
        return None
    kind, params = block["type"], block["params"]

    def make(optimizer: Any) -> Any:
        from deepspeed.runtime import lr_schedules

        module = lr_schedules if kind in DEEPSPEED_SCHEDULERS else torch.optim.lr_scheduler
        try:
            scheduler = getattr(module, kind)(optimizer, **params)
        except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
            raise UserError(
                f"{kind} does not take these parameters", where=source, key="scheduler.params", found=str(error)
            ) from error
        warmup.begin(scheduler)
        return scheduler

    return make


def advance(scheduler: Any, num_steps: int) -> None:
    """Advances a new scheduler, and with it the optimizer's rates, by `num_steps` steps.

    It steps one by one, because torch's schedulers compute each rate from the previous one, and loading a scheduler's
    state would restore the parameters of the run that saved it as well.
    """
    with warnings.catch_warnings():
        # torch warns unless the optimizer has stepped before each step; those steps were before the checkpoint.
        warnings.simplefilter("ignore")
        for _ in range(num_steps):
            scheduler.step()
