"""The first update of a warm-up with cosine decay counts, as that of DeepSpeed's other warm-ups does."""

from __future__ import annotations

from typing import Any


def begin(scheduler: Any) -> None:
    """Gives a new WarmupCosineLR the lowest rate of its warm-up, `warmup_min_ratio` of the optimizer's.

    Before its first step DeepSpeed's says 0 whatever that ratio is, where its WarmupLR says the lowest rate. The
    schedule itself stays where it is.
    """
    if type(scheduler).__name__ == "WarmupCosineLR" and scheduler.last_batch_iteration < 0:
        before = scheduler.last_batch_iteration
        scheduler.step(0)
        scheduler.last_batch_iteration = before
