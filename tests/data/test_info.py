from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.data.info import INFO_FILE, DatasetInfo, read_info, write_info
from dist_trainer.errors import UserError


def test_what_is_written_is_read(tmp_path: Path, prepared: tuple[Path, DatasetInfo]) -> None:
    _, info = prepared
    write_info(tmp_path, info)
    assert read_info(tmp_path) == info
    assert info.split("train") is info.train
    assert info.split("val") is info.val


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"format_version": 99}, "format_version"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"train": {"num_tokens": 5}}, "train.num_texts"),
    ],
)
def test_a_damaged_description_names_the_key(
    tmp_path: Path, prepared: tuple[Path, DatasetInfo], change: dict[str, Any], key: str
) -> None:
    values = json.loads((prepared[0] / INFO_FILE).read_text())
    (tmp_path / INFO_FILE).write_text(json.dumps(values | change))
    with pytest.raises(UserError) as raised:
        read_info(tmp_path)
    assert raised.value.where == str(tmp_path / INFO_FILE)
    assert raised.value.key == key


def test_a_description_that_is_not_json_or_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_info(tmp_path)
    (tmp_path / INFO_FILE).write_text('{"format_version": 1')
    with pytest.raises(UserError, match="damaged"):
        read_info(tmp_path)
