from __future__ import annotations

from typing import Any

import pytest

from dist_trainer.memory.checkpoint_size import checkpoint_bytes, num_checkpoints
from dist_trainer.memory.engines.settings import read_settings

# `tiny` has so many parameters.
NUM_PARAMETERS = 1_088_256
BF16 = {"bf16": {"enabled": True}}


def settings(stage: int, **keys: Any) -> Any:
    base = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
        "zero_optimization": {"stage": stage},
    }
    return read_settings({**base, **keys}, cuda=False)


# The folders that DeepSpeed 0.19.8 wrote of `tiny` after one step, on so many ranks.
@pytest.mark.parametrize(
    ("made", "world_size", "measured_bytes"),
    [
        (settings(0), 1, 13_132_210),
        (settings(0), 2, 13_138_885),
        (settings(0, **BF16), 1, 15_324_106),
        (settings(1), 1, 17_450_305),
        (settings(1, **BF16), 1, 15_274_027),
        (settings(2, **BF16), 1, 15_274_283),
        (settings(2, **BF16), 2, 15_293_397),
        (settings(3), 1, 13_103_597),
        (settings(3, **BF16), 1, 13_103_831),
        (settings(3, **BF16), 2, 13_148_238),
        (settings(2, **BF16, optimizer={"type": "SGD", "params": {}}), 1, 6_561_081),
    ],
    ids=[
        *("no ZeRO, fp32", "on two ranks", "no ZeRO, bf16", "1, fp32", "1, bf16", "2", "2 on two ranks", "3, fp32"),
        *("3, bf16", "3 on two ranks", "no states"),
    ],
)
def test_a_checkpoint_is_as_large_as_what_the_engine_wrote(made: Any, world_size: int, measured_bytes: int) -> None:
    assert checkpoint_bytes(made, NUM_PARAMETERS, world_size) == pytest.approx(measured_bytes, rel=0.02)


@pytest.mark.parametrize(
    ("steps", "every_steps", "at_end", "count"),
    [
        ([150, 150], 150, True, 2),
        ([150, 150], 0, True, 2),
        ([150, 150], 100, True, 4),
        ([150, 150], 100, False, 3),
        ([150], 0, False, 0),
    ],
    ids=["at the same steps", "at the ends alone", "at both", "regularly alone", "never"],
)
def test_how_many_a_run_writes(steps: list[int], every_steps: int, at_end: bool, count: int) -> None:
    assert num_checkpoints(steps, every_steps=every_steps, at_end=at_end) == count
