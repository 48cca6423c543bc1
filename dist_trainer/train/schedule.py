"""The learning rate's schedule: made as the JSON says it, and brought to where a resumed run stands."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from dist_trainer.config.deepspeed.params import DEEPSPEED_SCHEDULERS
from dist_trainer.errors import UserError
from dist_trainer.train import warmup


def scheduler_of(deepspeed_config: dict[str, Any], *, source: str) -> Callable[[Any], Any] | None:
    """A maker of the scheduler that the JSON names, given the optimizer; None where it names none.

    DeepSpeed hands torch's schedulers its own wrapped optimizer, which they refuse; so all are made here. The maker
    raises UserError for parameters that the scheduler refuses.
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
    """Brings a new scheduler, and its optimizer's rates, to where they stand after so many steps of the run.

    It walks there: torch's schedulers make each rate from the last, so that the state of one can only be loaded whole,
    with the parameters of the run that saved it.
    """
    with warnings.catch_warnings():
        # torch expects a step of the optimizer before each; those were taken before the checkpoint.
        warnings.simplefilter("ignore")
        for _ in range(num_steps):
            scheduler.step()
