"""What a card must say even if its digest is right."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folders import checkpoint, made, position

from dist_trainer.checkpoints import card
from dist_trainer.checkpoints.card import CARD_FILE, Card, DamageError


def rewritten(folder: Path, path: str, value: Any) -> None:
    """The card with one value changed, and the digest that belongs to it."""
    file = folder / CARD_FILE
    content = json.loads(file.read_text())["content"]
    *parents, last = path.split("/")
    inner = content
    for name in parents:
        inner = inner[name]
    inner[last] = value
    file.write_text(json.dumps({"content": content, "sha256": card._digest(content)}))


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 8)
    assert card.read(folder) == Card(position(8), made(), {"mp_rank_00_model_states.pt": 7, "random-rank-0.pt": 5})
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []


def test_data_may_lie_where_the_name_is_no_utf8(tmp_path: Path) -> None:
    data = dataclasses.replace(made().data["short"], path="a\udcff/train.bin")
    folder = checkpoint(tmp_path, 8, made_by=made(data={"short": data}))
    assert card.read(folder).made_by.data["short"] == dataclasses.replace(data, path="a\\xff/train.bin")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("position/step", -8),
        ("position/step", 9),
        ("position/step", float("nan")),
        ("position/step", "8"),
        ("position/step", True),
        ("position/step", 8.0),
        ("position/phases/short/tokens", -1),
        ("position/phases/short/steps", None),
        ("position/phases", {}),
        ("position/places/f00", {"epoch": 0, "tokens": 0, "sequence_length": 0}),
        ("position/places/f00", {"epoch": -1, "tokens": 0, "sequence_length": 8}),
        ("made_by/world_size", None),
        ("made_by", []),
        ("files", {"x": -1}),
    ],
)
def test_a_position_that_cannot_be_is_refused(tmp_path: Path, path: str, value: Any) -> None:
    folder = checkpoint(tmp_path, 8)
    rewritten(folder, path, value)
    with pytest.raises(DamageError) as caught:
        card.read(folder)
    assert caught.value.file == folder / CARD_FILE


@pytest.mark.parametrize("name", ["../latest", "/etc/hostname", "no\0name", "x" * 300])
def test_no_file_outside_the_folder_is_looked_at(tmp_path: Path, name: str) -> None:
    folder = checkpoint(tmp_path, 8)
    found = dataclasses.replace(card.read(folder), files={name: 1})
    with pytest.raises(DamageError):
        card.check_files(folder, found)


def test_a_card_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 8)
    with (folder / CARD_FILE).open("ab") as file:
        file.truncate(2**40)
    with pytest.raises(DamageError, match="is too large"):
        card.read(folder)


def test_a_checkpoint_that_is_being_written_is_not_whole(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 8)
    card.remove(folder)
    with pytest.raises(DamageError, match="is missing"):
        card.read(folder)
