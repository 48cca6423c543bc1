"""Gives the first update of DeepSpeed's WarmupCosineLR a learning rate, as its other warm-up schedules do."""

from __future__ import annotations

from typing import Any


def begin(scheduler: Any) -> None:
    """Sets the rate of a new WarmupCosineLR to the lowest of its warm-up: `warmup_min_ratio` x the optimizer's rate.

    Before its first step DeepSpeed's WarmupCosineLR has rate 0 whatever that ratio is, where WarmupLR has its lowest
    rate. The schedule's own step count is not changed.
    """
    if type(scheduler).__name__ == "WarmupCosineLR" and scheduler.last_batch_iteration < 0:
        before = scheduler.last_batch_iteration
        scheduler.step(0)
        scheduler.last_batch_iteration = before
