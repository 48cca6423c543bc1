"""What may change between the run that made a checkpoint and the one that resumes it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folders import DATA, DEEPSPEED, RUN, made, position

from dist_trainer.checkpoints.card import Card, DataFacts, Made
from dist_trainer.checkpoints.changed import differences, refuse_another_kind
from dist_trainer.checkpoints.find import Found
from dist_trainer.errors import UserError

FOUND = Found(Path("run/checkpoints/step-8"), Card(position(8), made(), {}))


def with_value(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(values)
    *parents, last = path.split(".")
    inner: Any = changed
    for name in parents:
        inner = inner.setdefault(name, {})
    inner[last] = value
    return changed


def of_deepspeed(path: str, value: Any) -> Made:
    return made(deepspeed=with_value(DEEPSPEED, path, value))


def of_run(path: str, value: Any) -> Made:
    return made(run=with_value(RUN, path, value))


def test_the_same_run_goes_on_without_a_word() -> None:
    refuse_another_kind(FOUND, made())
    assert differences(FOUND, made()) == []


@pytest.mark.parametrize(
    ("now", "key"),
    [
        (made(world_size=4), "world_size"),
        (of_run("model.num_layers", 3), "model.num_layers"),
        (of_run("model.context_length", 32), "model.context_length"),
        (of_deepspeed("optimizer.type", "Lion"), "optimizer.type"),
        (of_deepspeed("optimizer.params.torch_adam", True), "optimizer.params.torch_adam"),
        (of_deepspeed("zero_optimization.stage", 1), "zero_optimization.stage"),
        (of_deepspeed("zero_optimization.round_robin_gradients", True), "zero_optimization.round_robin_gradients"),
        (
            of_deepspeed("zero_optimization.offload_optimizer.device", "cpu"),
            "zero_optimization.offload_optimizer.device",
        ),
        (of_deepspeed("bf16.enabled", False), "precision"),
        (made(data={"short": DataFacts("b", 5, "b00", "t11")}), "tokenizer_sha256"),
    ],
)
def test_what_its_states_cannot_be_loaded_into_is_refused(now: Made, key: str) -> None:
    with pytest.raises(UserError) as caught:
        refuse_another_kind(FOUND, now)
    assert caught.value.key == key
    assert "was made by another kind of run" in caught.value.problem


@pytest.mark.parametrize(("path", "value"), [("bf16.enabled", False), ("optimizer.params.torch_adam", True)])
def test_what_the_device_decides_is_not_known_before_the_device(path: str, value: Any) -> None:
    refuse_another_kind(FOUND, of_deepspeed(path, value), is_device_known=False)


@pytest.mark.parametrize(
    ("now", "line"),
    [
        (of_deepspeed("optimizer.params.lr", 1e-5), "optimizer.params.lr is 1e-05, and was 0.003"),
        (of_deepspeed("gradient_accumulation_steps", 1), "gradient_accumulation_steps is 1, and was 4"),
        (of_deepspeed("scheduler.type", "StepLR"), "scheduler.type is StepLR, and was not set"),
        (of_run("model.dropout", 0.1), "model.dropout is 0.1, and was 0.0"),
        (of_run("seed", 2), "seed is 2, and was 1"),
        (
            of_run("phases", [{"name": "long", "sequence_length": 8, "steps": 9}, RUN["phases"][0]]),
            "phases.long.sequence_length is 8, and was 16",
        ),
    ],
)
def test_everything_else_is_applied_and_told(now: Made, line: str) -> None:
    refuse_another_kind(FOUND, now)
    assert differences(FOUND, now) == [line]


@pytest.mark.parametrize(
    "now",
    [
        of_deepspeed("steps_per_print", 1),
        of_run("memory.gc_every_steps", 1),
        of_run("data.num_workers", 2),
        of_run("data.source", "b"),
        of_run("phases", [{**phase, "data": "b"} for phase in RUN["phases"]]),
        made(data={"short": DataFacts("moved/train.bin", 1000, DATA.fingerprint, None)}),
    ],
)
def test_what_bears_on_no_number_is_not_told(now: Made) -> None:
    assert differences(FOUND, now) == []


def test_other_data_is_told_with_where_it_is_read_from() -> None:
    (line,) = differences(FOUND, made(data={"short": DataFacts("b.bin", 5, "b00", None)}))
    assert (
        line == "phase short reads other data: b.bin (5 tokens) from its beginning, and read a/train.bin (1000 tokens)"
    )
    other_phase = {"short": DATA, "long": DataFacts("b.bin", 5, "b00", None)}
    assert differences(FOUND, made(data=other_phase)) == []
