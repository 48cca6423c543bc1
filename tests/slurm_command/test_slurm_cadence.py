from __future__ import annotations

import pytest

from dist_trainer.config.run import CheckpointConfig
from dist_trainer.slurm.cadence import choose_signal_s, notices

HOURLY = CheckpointConfig(every_minutes=60.0)
HALF_HOURLY = CheckpointConfig(every_minutes=30.0, every_steps=1000)
AT_END = CheckpointConfig()
NEVER = CheckpointConfig(at_end=False)
SLOW = CheckpointConfig(stop_within_s=600.0)


@pytest.mark.parametrize(
    ("checkpoints", "time_s", "signal_s"),
    [
        (HALF_HOURLY, 43_200, 150),
        (HALF_HOURLY, None, 150),
        (SLOW, 43_200, 630),
        (SLOW, 600, 300),
        (CheckpointConfig(stop_within_s=20.0), 43_200, 120),
        (NEVER, 60, 30),
        (CheckpointConfig(stop_within_s=1e6), 10**7, 65_535),
    ],
)
def test_the_signal_leaves_time_to_save_and_to_be_requeued(
    checkpoints: CheckpointConfig, time_s: float | None, signal_s: int
) -> None:
    assert choose_signal_s(checkpoints, time_s) == signal_s


@pytest.mark.parametrize(
    ("checkpoints", "time_s", "signal_s"),
    [
        (HALF_HOURLY, 1_800.0, 150),
        (HALF_HOURLY, None, 120),
        (AT_END, 600.0, 120),
        (NEVER, 600.0, None),
        (HOURLY, 43_200.0, None),
        (HOURLY, None, None),
    ],
)
def test_nothing_is_said_where_nothing_is_lost(
    checkpoints: CheckpointConfig, time_s: float | None, signal_s: int | None
) -> None:
    assert notices(checkpoints, time_s=time_s, signal_s=signal_s) == []


@pytest.mark.parametrize(
    ("checkpoints", "time_s", "signal_s", "said"),
    [
        (NEVER, 43_200.0, 120, "what has been done when the job's time is over is lost"),
        (HALF_HOURLY, 43_200.0, 60, "USR1 comes 1 min before the end, and the run may take 2 min to save"),
        (HALF_HOURLY, 1_800.0, None, "unless 1000 steps take less"),
        (HOURLY, 1_800.0, None, "the job has 30 min until its end"),
    ],
)
def test_what_the_end_of_the_time_costs(
    checkpoints: CheckpointConfig, time_s: float | None, signal_s: int | None, said: str
) -> None:
    (notice,) = notices(checkpoints, time_s=time_s, signal_s=signal_s)
    assert said in notice
