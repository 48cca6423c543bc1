from __future__ import annotations

import pytest

from dist_trainer.config.run import CheckpointConfig
from dist_trainer.slurm.cadence import choose_signal_s, notices, wait_s

HOURLY = CheckpointConfig(every_minutes=60.0)
HALF_HOURLY = CheckpointConfig(every_minutes=30.0, every_steps=1000)
BY_STEPS = CheckpointConfig(every_steps=150)
NEVER = CheckpointConfig()


@pytest.mark.parametrize(
    ("checkpoints", "time_s", "signal_s"),
    [
        (HALF_HOURLY, 43_200, 1_920),
        (HALF_HOURLY, None, 1_920),
        (HALF_HOURLY, 3_600, 120),
        (BY_STEPS, 43_200, 120),
        (NEVER, 60, 30),
        (CheckpointConfig(every_minutes=2_000.0), 10**7, 120),
    ],
)
def test_the_signal_leaves_time_for_one_more_checkpoint(
    checkpoints: CheckpointConfig, time_s: float | None, signal_s: int
) -> None:
    assert choose_signal_s(checkpoints, time_s) == signal_s


def test_a_job_that_waits_for_a_checkpoint_keeps_time_to_be_requeued() -> None:
    assert (wait_s(1_920), wait_s(40), wait_s(1)) == (1_890, 20, 1)


@pytest.mark.parametrize(
    ("checkpoints", "time_s", "signal_s"),
    [
        (HALF_HOURLY, 43_200.0, 1_920),
        (HALF_HOURLY, None, 1_920),
        (BY_STEPS, 600.0, 120),
        (CheckpointConfig(every="auto"), 600.0, 120),
        (NEVER, 600.0, None),
        (HOURLY, 43_200.0, None),
    ],
)
def test_nothing_is_said_where_nothing_is_lost(
    checkpoints: CheckpointConfig, time_s: float | None, signal_s: int | None
) -> None:
    assert notices(checkpoints, time_s=time_s, signal_s=signal_s) == []


@pytest.mark.parametrize(
    ("checkpoints", "time_s", "signal_s", "said"),
    [
        (NEVER, 43_200.0, 120, "what a phase has done when the job's time is over is lost"),
        (HOURLY, 3_600.0, 120, "the job has 58 min until USR1 comes, and a checkpoint is due every 1 h"),
        (HOURLY, 3_600.0, 120, "never gets ahead"),
        (HALF_HOURLY, 1_800.0, 120, "unless 1000 steps take less"),
        (HOURLY, 1_800.0, None, "the job has 30 min until its end"),
        (HOURLY, 43_200.0, 120, "USR1 comes 2 min before the end"),
        (HOURLY, None, 120, "each requeue may lose up to 1 h of work"),
    ],
)
def test_what_the_end_of_the_time_costs(
    checkpoints: CheckpointConfig, time_s: float | None, signal_s: int | None, said: str
) -> None:
    (notice,) = notices(checkpoints, time_s=time_s, signal_s=signal_s)
    assert said in notice
