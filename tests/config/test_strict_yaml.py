from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_trainer.config import run
from dist_trainer.config.strict_yaml import load
from dist_trainer.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("0", 0),
        ("-7", -7),
        ("1_000", 1000),
        ("0x10", 16),
        ("1.5", 1.5),
        ("1e5", "1e5"),
        ("1.0e+3", 1000.0),
        ("2026-01-31", "2026-01-31"),
        ("2026-99-99", "2026-99-99"),
        ("true", True),
        ("~", None),
        ("{a: [1, {b: c}]}", {"a": [1, {"b": "c"}]}),
        ("a: &x [1]\nb: *x\n", {"a": [1], "b": [1]}),
        ("'010'", "010"),
        ("'1:30'", "1:30"),
    ],
)
def test_what_is_what_it_looks_like_is_taken(text: str, value: Any) -> None:
    assert load(text) == value
    assert type(load(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("010", "YAML reads 010 as 8"),
        ("-010", "YAML reads -010 as -8"),
        ("1:30", "YAML reads 1:30 as 90"),
        ("1:30:00", "YAML reads 1:30:00 as 5400"),
        ("1:30.5", "base 60"),
        ("9" * 5000, "5000 digits"),
        ("1.0e+999", "too large"),
        ("a: 1\na: 2", "'a' is said twice"),
        ("s: {[]}", "a key is a word"),
        ("s: {{a: 1}: 2}", "a key is a word"),
        ("? []\n: 1", "a key is a word"),
        ("1: 2", "a key is a word"),
        ("[" * 500, "more than 100 deep"),
        ("{a: " * 500, "more than 100 deep"),
        ("- " * 500 + "1", "more than 100 deep"),
        ("&a [*a]", "stands within itself"),
        ("&a {b: *a}", "stands within itself"),
        ("a: &x {b: 1}\nc: {<<: *x}", "merge key"),
        ("!!timestamp x", "a tag"),
        ("!!int x", "a tag"),
        ("!!python/object:os.system x", "a tag"),
        ("!x 1", "a tag"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_not_what_it_looks_like_is_refused_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(yaml.MarkedYAMLError) as caught:
        load(text)
    assert problem in str(caught.value.problem) and caught.value.problem_mark is not None


@pytest.mark.parametrize(
    "text",
    ["s: {[]}", "[" * 500, f"seed: {'9' * 5000}", "a\0b", "seed: 010", "seed: 1:30"],
    ids=lambda value: repr(value)[:20],
)
def test_a_run_file_is_refused_in_one_message_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="not valid YAML") as caught:
        run.read(path)
    assert str(path) in str(caught.value.where) and len(str(caught.value)) < 600


def changed(**values: Any) -> dict[str, Any]:
    return {
        "name": "n",
        "deepspeed": "zero2",
        "model": {"num_layers": 1, "hidden_size": 8, "num_heads": 1, "vocab_size": 300, "context_length": 8},
        "phases": [{"name": "p", "sequence_length": 8, "steps": 1}],
        **values,
    }


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"seed": 2**63}, "seed"),
        ({"name": "a\0b"}, "name"),
        ({"name": "a\ud800"}, "name"),
        ({"name": "a\x1b[2J"}, "name"),
        ({"checkpoints": {"every_minutes": float("inf")}}, "checkpoints.every_minutes"),
        ({"targets": {"baseline_bytes": 0, "target_bytes": 1}}, "targets.baseline_bytes"),
        ({"targets": {"baseline_bytes": f"{'9' * 400} GB", "target_bytes": 1}}, "targets.baseline_bytes"),
    ],
)
def test_values_that_nothing_could_work_with_are_refused(values: dict[str, Any], key: str) -> None:
    run.check(changed(), source="run.yaml")
    with pytest.raises(UserError) as caught:
        run.check(changed(**values), source="run.yaml")
    assert caught.value.key == key
