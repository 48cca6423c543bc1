from __future__ import annotations

from typing import Any

import pytest

from dist_trainer.memory.checkpoint_size import checkpoint_bytes, copy_bytes, num_checkpoints
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


# The folders of `tiny` after one step, on so many ranks.
@pytest.mark.parametrize(
    ("made", "world_size", "measured_bytes"),
    [
        (settings(0), 1, 13_109_554),
        (settings(2, **BF16), 2, 13_119_321),
        (settings(3, **BF16), 1, 13_109_578),
        (settings(2, **BF16, optimizer={"type": "SGD", "params": {}}), 1, 4_377_691),
    ],
    ids=["no ZeRO, fp32", "2 on two ranks", "3", "no states"],
)
def test_a_checkpoint_is_as_large_as_what_a_run_wrote(made: Any, world_size: int, measured_bytes: int) -> None:
    assert checkpoint_bytes(made, NUM_PARAMETERS, world_size) == pytest.approx(measured_bytes, rel=0.02)


@pytest.mark.parametrize(("pinned", "num_bytes"), [(False, 6 * NUM_PARAMETERS), (True, 2**23)])
def test_each_rank_keeps_a_copy_of_its_part(pinned: bool, num_bytes: int) -> None:
    assert copy_bytes(settings(2, **BF16), NUM_PARAMETERS, 2, pinned=pinned) == num_bytes


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
