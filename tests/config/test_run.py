"""The run file: what it accepts, and what it says about a mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_trainer.config import run
from dist_trainer.config.files import shipped_folder
from dist_trainer.errors import UserError


@pytest.fixture
def raw() -> dict[str, Any]:
    return run.read(shipped_folder("configs") / "tiny.yaml")


@pytest.mark.parametrize("path", sorted(shipped_folder("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_run_file_is_valid_and_named_after_its_file(path: Path) -> None:
    assert run.check(run.read(path), source=str(path)).name == path.stem


def test_a_dumped_configuration_reads_back_as_the_same(raw: dict[str, Any]) -> None:
    config = run.check(raw, source="tiny")
    assert run.check(yaml.safe_load(run.dump(config)), source="dump") == config


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        ({"modle": {}}, "modle", "did you mean 'model'?"),
        ({"model": {"num_layer": 3}}, "model.num_layer", "did you mean 'num_layers'?"),
        ({"model": {"hidden_size": "wide"}}, "model.hidden_size", "'wide'"),
        ({"model": {"hidden_size": 130}}, "model", "not a multiple of num_heads 4"),
        ({"model": {"dropout": 1.5}}, "model.dropout", "less than 1"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"phases": []}, "phases", "at least 1 item"),
        ({"phases": [{"name": "a", "sequence_length": 8}]}, "phases.0", "either `steps` or `tokens`"),
        ({"phases": [{"name": "a", "sequence_length": 8, "steps": 1, "tokens": 1}]}, "phases.0", "either"),
        ({"phases": [{"name": "a", "sequence_length": 512, "steps": 1}]}, "", "beyond the model's context_length 256"),
        ({"phases": [{"name": "a", "sequence_length": 8, "steps": 1, "sequence": 1}]}, "phases.0.sequence", "did you"),
        ({"targets": {"baseline_bytes": "4 GB", "target_bytes": "2.5"}}, "targets.target_bytes", "'2.5 GB'"),
    ],
)
def test_a_mistake_is_named_with_its_key(raw: dict[str, Any], change: dict[str, Any], key: str, says: str) -> None:
    for name, value in change.items():
        raw[name] = {**raw[name], **value} if isinstance(value, dict) and isinstance(raw.get(name), dict) else value
    with pytest.raises(UserError) as caught:
        run.check(raw, source="my.yaml")
    assert caught.value.where == "my.yaml"
    assert caught.value.key == key
    assert says in str(caught.value)


def test_a_missing_section_is_named(raw: dict[str, Any]) -> None:
    del raw["model"]
    with pytest.raises(UserError, match="lacks `model`"):
        run.check(raw, source="my.yaml")


def test_two_phases_of_one_name_are_refused(raw: dict[str, Any]) -> None:
    raw["phases"] = [{"name": "a", "sequence_length": 8, "steps": 1}] * 2
    with pytest.raises(UserError, match="two phases are named 'a'"):
        run.check(raw, source="my.yaml")


def test_a_key_said_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nseed: 1\nseed: 2\n")
    with pytest.raises(UserError, match="'seed' is said twice") as caught:
        run.read(path)
    assert caught.value.where == f"{path}:3:1"


def test_text_that_is_not_yaml_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: [a\nmodel: {\n")
    with pytest.raises(UserError, match="not valid YAML"):
        run.read(path)


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"every_steps": 5}, "every_steps 5"),
        ({"every_minutes": 0.5}, "every_minutes 0.5"),
        ({"every_steps": 5, "every_minutes": 3.0}, "every_steps 5 and every_minutes 3"),
    ],
)
def test_a_cadence_of_its_own_beside_one_that_is_chosen_is_refused_by_both_keys(
    raw: dict[str, Any], beside: dict[str, Any], said: str
) -> None:
    nothing = {"every_steps": 0, "every_minutes": 0.0}
    assert run.check({**raw, "checkpoints": {"every": "auto", **nothing}}, source="x").checkpoints.within_phases
    with pytest.raises(UserError, match=f"`every: auto` contradicts {said}: leave out one") as caught:
        run.check({**raw, "checkpoints": {"every": "auto", **beside}}, source="x")
    assert caught.value.key == "checkpoints"


def test_targets_are_gigabytes_of_ten_to_the_ninth(raw: dict[str, Any]) -> None:
    raw["targets"] = {"baseline_bytes": "4 GB", "target_bytes": "2.5 GB"}
    targets = run.check(raw, source="my.yaml").targets
    assert targets is not None
    assert (targets.baseline_bytes, targets.target_bytes) == (4_000_000_000, 2_500_000_000)
