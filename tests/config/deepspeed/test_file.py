from __future__ import annotations

import math
from pathlib import Path

import pytest

from dist_trainer.config.deepspeed.resolve import DeepSpeedFileError, read
from dist_trainer.errors import UserError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "ds.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = write(
        tmp_path, '\ufeff{"train_batch_size": 8, "zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8}}'
    )
    assert read(path) == {"train_batch_size": 8, "zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8}}
    assert type(read(path)["zero_optimization"]) is dict


def test_keys_said_twice_are_named_at_every_level(tmp_path: Path) -> None:
    path = write(tmp_path, '{"fp16": {"enabled": true, "enabled": false}, "a": [{"b": 1, "b": 2}], "x": 1, "x": 2}')
    with pytest.raises(DeepSpeedFileError) as caught:
        read(path)
    assert {mistake.key for mistake in caught.value.mistakes} == {"x", "fp16.enabled", "a.0.b"}
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        '{\n  // one\n  "train_batch_size": 8, # two\n  /* three */ "zero_optimization": {"stage": 1}\n}',
        '{"train_batch_size": 8, "zero_optimization": {"stage": 1,},}',
        "{\n  train_batch_size: 8\n  zero_optimization: {stage: 1}\n}",
        "train_batch_size: 8\nzero_optimization:\n{\n  'stage': 1\n}\n",
    ],
)
def test_what_deepspeed_reads_beyond_json_is_read(tmp_path: Path, text: str) -> None:
    assert read(write(tmp_path, text)) == {"train_batch_size": 8, "zero_optimization": {"stage": 1}}


def test_a_key_said_twice_is_named_in_hjson_too(tmp_path: Path) -> None:
    with pytest.raises(DeepSpeedFileError) as caught:
        read(write(tmp_path, "{\n  # remark\n  fp16: {enabled: true, enabled: false}\n}"))
    assert [mistake.key for mistake in caught.value.mistakes] == ["fp16.enabled"]


def test_text_without_quotes_is_text_and_a_number_of_jsons_is_one(tmp_path: Path) -> None:
    assert read(write(tmp_path, "{\n  a: GB_SIZE,\n  b: NaN\n}")) == {"a": "GB_SIZE,", "b": "NaN"}
    assert read(write(tmp_path, '{"steps_per_print": Infinity}')) == {"steps_per_print": math.inf}


@pytest.mark.parametrize(
    ("text", "place", "as_json"),
    [
        ('{\n  "a" 1\n}', "line 2, column 7", None),
        ('{\n  # remark\n  "a" 1\n}', "line 3, column 7", "line 2, column 3"),
        ('{\n  "a": tru}', "line 2, column 12", None),
        ('{\n  "a": tru,\n  "b": {"c": yes}\n}\n', "line 5, column 1", "line 2, column 8"),
        ("{\n  /* for ever", "line 2, column 14", None),
    ],
)
def test_a_syntax_error_has_line_and_column(tmp_path: Path, text: str, place: str, as_json: str | None) -> None:
    with pytest.raises(UserError, match="not valid JSON") as caught:
        read(write(tmp_path, text))
    assert place in str(caught.value.where)
    assert (caught.value.hint is None) if as_json is None else (as_json in str(caught.value.hint))


def test_hjson_has_the_bounds_that_json_has(tmp_path: Path) -> None:
    for text in (
        "a: 1" + "0" * 400,
        "# b\n{a: 1" + "0" * 400 + "}",
        "#\n" + "[" * 5000,
        "#\n" + "[" * 120 + "]" * 120,
        "a: 1e999",
    ):
        with pytest.raises(UserError, match="cannot be read"):
            read(write(tmp_path, text))


@pytest.mark.parametrize("text", ["[1, 2]", '"zero2"', "3", "null", "#\n[1]", "no object"])
def test_only_an_object_is_a_configuration(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="one JSON object"):
        read(write(tmp_path, text))


def test_a_file_that_is_empty_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty"):
        read(write(tmp_path, "\n"))
    with pytest.raises(UserError, match="no such"):
        read(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "ds.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read(tmp_path / "ds.json")
    with pytest.raises(UserError, match="nested too deeply"):
        read(write(tmp_path, "[" * 100_000))
