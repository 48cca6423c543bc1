"""A job's time limit against its checkpoints: when it is told to save, what is lost, whether it gets ahead at all."""

from __future__ import annotations

import math

from dist_trainer.config.run import CheckpointConfig
from dist_trainer.slurm.notation import format_time
from dist_trainer.units import counted

# SLURM checks time limits about once a minute.
SHORTEST_SIGNAL_S = 120
# The time of --signal is a 16-bit number.
MAX_SIGNAL_S = 65_535
# The part of the signal's time that SLURM needs to requeue the job.
_TO_REQUEUE_S = 30


def choose_signal_s(checkpoints: CheckpointConfig, time_s: float | None) -> int:
    """How many seconds before its end the job should get the signal: enough to save and to be requeued, but never more
    than half of the job's time.
    """
    needed_s = max(SHORTEST_SIGNAL_S, math.ceil(checkpoints.stop_within_s) + _TO_REQUEUE_S)
    half_s = math.inf if time_s is None else time_s / 2
    return int(max(1, min(needed_s, MAX_SIGNAL_S, half_s)))


def notices(checkpoints: CheckpointConfig, *, time_s: float | None, signal_s: int | None) -> list[str]:
    """What is lost at the job's time limit, as lines for people. `signal_s` None: the job is not requeued."""
    if signal_s is not None:
        if not checkpoints.saves_at_all:
            return [
                "no checkpoint is written (checkpoints.at_end is false, every_steps and every_minutes are 0): what has "
                "been done when the job's time is over is lost"
            ]
        if signal_s < checkpoints.stop_within_s:
            return [
                f"USR1 comes {format_time(signal_s)} before the end, and the run may take "
                f"{format_time(checkpoints.stop_within_s)} to save (checkpoints.stop_within_s): what takes longer is "
                "lost since the newest checkpoint"
            ]
        return []
    every_s = 60 * checkpoints.every_minutes
    if time_s is None or not every_s or time_s > every_s:
        return []
    unless = f", unless {counted(checkpoints.every_steps, 'step')} take less" if checkpoints.every_steps else ""
    return [
        f"the job has {format_time(time_s)} until its end, and a checkpoint is due every {format_time(every_s)}: "
        f"none is written by the clock{unless}"
    ]
