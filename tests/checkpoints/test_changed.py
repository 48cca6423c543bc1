"""What may change between the run that made a checkpoint and the one that resumes it."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folders import DATA, DEEPSPEED, RUN, checkpoint, content_of, made, write_content

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.changed import differences, refuse_another_kind
from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.index import DataFacts, Made
from dist_trainer.errors import UserError


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = checkpoint(tmp_path_factory.mktemp("run") / "checkpoints", 8)
    return Found(folder, index.read(folder))


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


def test_the_same_run_goes_on_without_a_word(found: Found) -> None:
    refuse_another_kind(found, made())
    assert differences(found, made()) == []


@pytest.mark.parametrize(
    ("now", "key"),
    [
        (of_run("model.num_layers", 3), "model.num_layers"),
        (of_run("model.hidden_size", 16), "model.hidden_size"),
        (of_run("model.num_heads", 4), "model.num_heads"),
        (of_run("model.vocab_size", 10), "model.vocab_size"),
        (of_run("model.context_length", 32), "model.context_length"),
        (of_deepspeed("optimizer.type", "Lion"), "optimizer.type"),
        (made(data={"short": DataFacts("b", 5, "b00", "t11")}), "tokenizer_sha256"),
        (made(data={"short": DATA, "long": DataFacts("b", 5, "b00", "t11")}), "tokenizer_sha256"),
    ],
)
def test_what_its_states_cannot_be_loaded_into_is_refused(found: Found, now: Made, key: str) -> None:
    with pytest.raises(UserError) as caught:
        refuse_another_kind(found, now)
    assert caught.value.key == key
    assert "was made by another kind of run" in caught.value.problem
    assert caught.value.expected is not None and "index.json of the checkpoint" in caught.value.expected
    assert caught.value.hint is not None and "--resume never" in caught.value.hint


def test_the_optimizers_type_is_the_same_in_any_case(found: Found) -> None:
    refuse_another_kind(found, of_deepspeed("optimizer.type", "adamw"))


@pytest.mark.parametrize(
    ("now", "line"),
    [
        (made(world_size=4), "the run has 4 ranks, and had 2"),
        (made(world_size=1), "the run has 1 rank, and had 2"),
        (of_deepspeed("zero_optimization.stage", 3), "zero_optimization.stage is 3, and was 2"),
        (of_deepspeed("zero_optimization.stage", 0), "zero_optimization.stage is 0, and was 2"),
        (of_deepspeed("bf16.enabled", False), "bf16.enabled is False, and was True"),
        (of_deepspeed("fp16.enabled", True), "fp16.enabled is True, and was not set"),
        (
            of_deepspeed("zero_optimization.offload_optimizer.device", "cpu"),
            "zero_optimization.offload_optimizer.device is cpu, and was not set",
        ),
        (
            of_deepspeed("zero_optimization.round_robin_gradients", True),
            "zero_optimization.round_robin_gradients is True, and was not set",
        ),
        (
            of_deepspeed("optimizer.params.torch_adam", True),
            "optimizer.params.torch_adam is True, and was not set",
        ),
        (of_run("model.pad_vocab", True), "model.pad_vocab is True, and was not set"),
    ],
)
def test_how_the_states_are_shared_out_and_kept_may_change_and_is_told(found: Found, now: Made, line: str) -> None:
    refuse_another_kind(found, now)
    assert differences(found, now) == [line]


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
def test_everything_else_is_applied_and_told(found: Found, now: Made, line: str) -> None:
    refuse_another_kind(found, now)
    assert differences(found, now) == [line]


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
def test_what_bears_on_no_number_is_not_told(found: Found, now: Made) -> None:
    assert differences(found, now) == []


def test_other_data_is_told_with_where_it_is_read_from(found: Found) -> None:
    (line,) = differences(found, made(data={"short": DataFacts("b.bin", 5, "b00", None)}))
    assert (
        line == "phase short reads other data: b.bin (5 tokens) from its beginning, and read a/train.bin (1000 tokens)"
    )
    other_phase = {"short": DATA, "long": DataFacts("b.bin", 5, "b00", None)}
    assert differences(found, made(data=other_phase)) == []


def test_other_data_that_an_earlier_phase_has_read_is_read_on(found: Found) -> None:
    before = made(data={"short": DataFacts("b.bin", 5, "b00", None)})
    earlier = Found(found.folder, dataclasses.replace(found.index, made_by=before))
    (line,) = differences(earlier, made())
    assert "a/train.bin (1000 tokens) from where it had been read to" in line


@pytest.mark.parametrize(
    "value", [None, 7, "text", [], [1], [{}], [{"name": []}], [{"name": "a"}, 3], {"a": {"b": [1]}}, [[[]]]], ids=repr
)
@pytest.mark.parametrize("where", ["run/model", "run/phases", "run/data", "deepspeed/optimizer", "deepspeed/bf16"])
def test_whatever_a_strangers_index_says_of_its_run_is_compared_or_refused(
    tmp_path: Path, where: str, value: Any
) -> None:
    stranger = with_content(tmp_path, where, value)
    try:
        refuse_another_kind(stranger, made())
    except UserError as error:
        assert error.key is not None
    assert all(len(line) < 3000 for line in differences(stranger, made()))


def test_what_a_strangers_index_says_is_told_short_and_without_commands(tmp_path: Path) -> None:
    stranger = with_content(tmp_path, "run/seed", "\x1b[2J" + "x" * 100_000)
    stranger.index.made_by.run["\x1b[1m" + "y" * 100_000] = 1
    stranger.index.made_by.data["short"] = DataFacts("\x1b[2J", 1, "another", None)
    lines = differences(stranger, made())
    assert len(lines) == 3
    for line in lines:
        assert "\x1b" not in line and len(line) < 3000


def with_content(tmp_path: Path, where: str, value: Any) -> Found:
    folder = checkpoint(tmp_path, 8)
    content = content_of(folder)
    block, key = where.split("/")
    content["made_by"][block][key] = value
    write_content(folder, json.dumps(content).encode())
    return Found(folder, index.read(folder))
