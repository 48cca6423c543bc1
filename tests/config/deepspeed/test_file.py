from __future__ import annotations

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
    ("text", "line", "column"),
    [
        ('{\n  "a": 1,  // a remark\n  "b": 2\n}', 2, 12),
        ('{\n  # a remark\n  "b": 2\n}', 2, 3),
        ('{\n  /* a remark */ "b": 2\n}', 2, 3),
    ],
)
def test_a_comment_is_called_one(tmp_path: Path, text: str, line: int, column: int) -> None:
    with pytest.raises(UserError) as caught:
        read(write(tmp_path, text))
    assert caught.value.problem == "JSON has no comments"
    assert f"line {line}, column {column}" in str(caught.value)


@pytest.mark.parametrize("text", ['{"a": 1,}', '{"a": [1, 2,]}', '{"a": 1,\n}'])
def test_a_trailing_comma_is_explained(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError) as caught:
        read(write(tmp_path, text))
    assert caught.value.hint is not None
    assert "comma" in caught.value.hint
    assert "line " in str(caught.value.where)


def test_other_syntax_errors_have_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not valid JSON") as caught:
        read(write(tmp_path, '{\n  "a" 1\n}'))
    assert "line 2, column 7" in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", '"zero2"', "3", "null"])
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
