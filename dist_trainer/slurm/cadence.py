"""A job's time limit against its checkpoints: what a requeue loses, and whether the run gets ahead at all."""

from __future__ import annotations

import math

from dist_trainer.config.run import CheckpointConfig
from dist_trainer.slurm.notation import format_time
from dist_trainer.units import counted

# SLURM checks time limits about once a minute.
SHORTEST_SIGNAL_S = 120
# The time of --signal is a 16-bit number.
MAX_SIGNAL_S = 65_535
# The part of the signal's time that SLURM needs to end the ranks and requeue the job.
_TO_REQUEUE_S = 30


def choose_signal_s(checkpoints: CheckpointConfig, time_s: float | None) -> int:
    """How many seconds before its end the job should get the signal: enough for one more checkpoint, if that is at most
    half of the job's time; else the shortest, which is never more than half of it.
    """
    every_s = 60 * checkpoints.every_minutes
    with_checkpoint_s = math.ceil(every_s) + SHORTEST_SIGNAL_S
    half_s = math.inf if time_s is None else time_s / 2
    if every_s and with_checkpoint_s <= min(half_s, MAX_SIGNAL_S):
        return with_checkpoint_s
    return int(max(1, min(SHORTEST_SIGNAL_S, half_s)))


def wait_s(signal_s: int) -> int:
    """How many seconds after the signal a job may wait for one more checkpoint before it asks to be requeued."""
    return signal_s - min(_TO_REQUEUE_S, signal_s // 2)


def notices(checkpoints: CheckpointConfig, *, time_s: float | None, signal_s: int | None) -> list[str]:
    """What is lost at the job's time limit, as lines for people. `signal_s` None: the job is not requeued."""
    every_s = 60 * checkpoints.every_minutes
    if not checkpoints.within_phases:
        if signal_s is None:
            return []
        return [
            "no checkpoint is written within a phase (checkpoints.every_steps and every_minutes are 0): what a phase "
            "has done when the job's time is over is lost"
        ]
    if not every_s:
        # How long `every_steps` steps take, and how often `every: auto` saves, is not known before the run.
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
