"""The schemas for editors: they are what the package writes, and they take what the program takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from dist_trainer.config.deepspeed.check import examine
from dist_trainer.config.deepspeed.keys import FREE_FORM, children, table
from dist_trainer.config.deepspeed.schema import deepspeed_schema
from dist_trainer.config.run import RunConfig
from dist_trainer.config.schema import SCHEMAS, dump, run_schema

PROJECT = Path(__file__).parents[2]
VALUES: tuple[Any, ...] = (
    *(True, False, 0, 1, -1, 2, 3, 7, 0.5, 1.5, 5e8, "auto", "true", "Off", "500", "1e-3", "none", "cpu", "fp16"),
    *("BF16", "mean", "SUM", "inf", "some text", None, [], ["a"], [0.9, 0.95], {}),
)


@pytest.fixture(scope="module")
def deepspeed() -> Draft202012Validator:
    Draft202012Validator.check_schema(deepspeed_schema())
    return Draft202012Validator(deepspeed_schema())


@pytest.mark.parametrize("name", SCHEMAS)
def test_those_that_are_shipped_are_of_this_version(name: str) -> None:
    told = "python -m dist_trainer.config.schema schemas writes them again"
    assert (PROJECT / "schemas" / name).read_text(encoding="utf-8") == dump(SCHEMAS[name]()), told


def test_every_shipped_file_is_well_by_its_schema(deepspeed: Draft202012Validator) -> None:
    runs = Draft202012Validator(run_schema())
    for path in sorted((PROJECT / "configs").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        named = text.splitlines()[0].partition("$schema=")[2]
        assert (path.parent / named).resolve() == PROJECT / "schemas" / "run.json"
        runs.validate(yaml.safe_load(text))
    for path in sorted((PROJECT / "ds_configs").glob("*.json")):
        deepspeed.validate(json.loads(path.read_text(encoding="utf-8")))


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def test_deepspeeds_takes_and_refuses_what_the_table_does(deepspeed: Draft202012Validator) -> None:
    """But for the range of a number in quotation marks, and for the names of schedulers, which rules.py knows."""
    blocks = {path for path in children() if path not in FREE_FORM}
    differ = []
    for path in table():
        for value in VALUES:
            if (path in blocks and isinstance(value, dict)) or path == "scheduler.type":
                continue
            raw = nested(path, value)
            is_well = not examine(raw).mistakes
            is_number_in_marks = isinstance(value, str) and value[0].isdigit()
            if deepspeed.is_valid(raw) != is_well and (is_well or not is_number_in_marks):
                differ.append((path, value, "taken" if is_well else "refused"))
    assert differ == []


@pytest.mark.parametrize(
    ("raw", "is_well"),
    [
        ({"$schema": "../schemas/deepspeed.json", "_why": "a remark"}, True),
        ({"train_batchsize": 8}, False),
        ({"zero_optimization": {"stage": 2, "bucket_size": 1}}, False),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}}, True),
        ({"optimizer": {"type": "AdamW", "params": {"momentum": 0.9}}}, False),
        ({"optimizer": {"type": "SGD", "params": {"momentum": 0.9}}}, True),
        ({"scheduler": {"type": "WarmupLR", "params": {"total_num_steps": 9}}}, False),
        ({"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}}}, True),
        ({"scheduler": {"type": "WarmUpLR"}}, False),
    ],
)
def test_names_and_what_follows_from_a_type(
    raw: dict[str, Any], is_well: bool, deepspeed: Draft202012Validator
) -> None:
    assert deepspeed.is_valid(raw) is is_well


@pytest.mark.parametrize(
    ("change", "is_well"),
    [
        ({"targets": {"baseline_bytes": "4 GB", "target_bytes": 2_500_000_000}}, True),
        ({"sead": 1}, False),
        ({"seed": -1}, False),
        ({"model": {"num_layers": 2}}, False),
    ],
)
def test_the_run_files_knows_its_keys(change: dict[str, Any], is_well: bool) -> None:
    raw = yaml.safe_load((PROJECT / "configs" / "tiny.yaml").read_text(encoding="utf-8")) | change
    assert Draft202012Validator(run_schema()).is_valid(raw) is is_well
    assert set(run_schema()["properties"]) == set(RunConfig.model_fields)
