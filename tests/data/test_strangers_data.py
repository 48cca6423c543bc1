"""A stranger's tokenizer, dataset or token file: what is no file is neither waited for nor read without end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dist_trainer.data.info import read_info
from dist_trainer.data.tokens import open_tokens
from dist_trainer.data.vocabulary import load_vocabulary
from dist_trainer.errors import UserError


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


LOADERS: dict[str, Callable[[Path], object]] = {
    "tokenizer.json": load_vocabulary,
    "dataset.json": lambda path: read_info(path.parent),
    "train.bin": lambda path: open_tokens(path.parent, "train", 100),
}


@pytest.mark.parametrize("make", [os.mkfifo, _device], ids=["fifo", "device"])
@pytest.mark.parametrize("name", list(LOADERS))
def test_what_is_no_regular_file_is_refused_by_name(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    make(tmp_path / name)
    with pytest.raises(UserError, match="not a regular file") as refused:
        LOADERS[name](tmp_path / name)
    assert refused.value.where == str(tmp_path / name)


@pytest.mark.parametrize("name", ["tokenizer.json", "dataset.json"])
def test_a_file_larger_than_any_of_its_kind_is_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 2**40)
    with pytest.raises(UserError, match="too large"):
        LOADERS[name](tmp_path / name)


def test_a_header_that_claims_more_tokens_than_there_are_is_refused(tmp_path: Path) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, 2**31 - 1
    (tmp_path / "train.bin").write_bytes(header.tobytes() + b"\0" * 8)
    with pytest.raises(UserError, match="cut short"):
        LOADERS["train.bin"](tmp_path / "train.bin")
