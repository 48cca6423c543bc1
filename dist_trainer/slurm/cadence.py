"""A job's time against its checkpoints: what a requeue loses, and whether the run ever gets ahead."""

from __future__ import annotations

import math

from dist_trainer.config.run import CheckpointConfig
from dist_trainer.slurm.notation import format_time
from dist_trainer.units import counted

# SLURM looks at its jobs' time from minute to minute.
SHORTEST_SIGNAL_S = 120
# --signal is a number of 16 bits.
MAX_SIGNAL_S = 65_535
# Of the signal's time, for SLURM to end the ranks and take the job back.
_TO_REQUEUE_S = 30


def choose_signal_s(checkpoints: CheckpointConfig, time_s: float | None) -> int:
    """How long before the job's end it is to be told: one more checkpoint fits in, where that is half the time or less.

    The shortest is never more than half of the time.
    """
    every_s = 60 * checkpoints.every_minutes
    with_checkpoint_s = math.ceil(every_s) + SHORTEST_SIGNAL_S
    half_s = math.inf if time_s is None else time_s / 2
    if every_s and with_checkpoint_s <= min(half_s, MAX_SIGNAL_S):
        return with_checkpoint_s
    return int(max(1, min(SHORTEST_SIGNAL_S, half_s)))


def wait_s(signal_s: int) -> int:
    """How long a job that was told may wait for one more checkpoint before it asks to be requeued."""
    return signal_s - min(_TO_REQUEUE_S, signal_s // 2)


def notices(checkpoints: CheckpointConfig, *, time_s: float | None, signal_s: int | None) -> list[str]:
    """What is lost at the end of the job's time, in lines for a person. `signal_s` None: the job is not requeued."""
    every_s = 60 * checkpoints.every_minutes
    if not every_s and not checkpoints.every_steps:
        if signal_s is None:
            return []
        return [
            "no checkpoint is written within a phase (checkpoints.every_steps and every_minutes are 0): what a phase "
            "has done when the job's time is over is lost"
        ]
    if not every_s:
        # How long so many steps take is not known before the run.
        return []
    left_s = math.inf if time_s is None else time_s - (signal_s or 0)
    if left_s <= every_s:
        until = "its end" if signal_s is None else "USR1 comes"
        unless = f", unless {counted(checkpoints.every_steps, 'step')} take less" if checkpoints.every_steps else ""
        then = "" if signal_s is None else "; a job that is requeued then never gets ahead"
        return [
            f"the job has {format_time(left_s)} until {until}, and a checkpoint is due every {format_time(every_s)}: "
            f"none is written by the clock{unless}{then}"
        ]
    if signal_s is not None and signal_s < every_s:
        return [
            f"USR1 comes {format_time(signal_s)} before the end, and a checkpoint is due every {format_time(every_s)}: "
            f"each requeue may lose up to {format_time(every_s)} of work"
        ]
    return []
