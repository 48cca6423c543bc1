from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from dist_trainer.data import tokens as tokens_module
from dist_trainer.data.info import INFO_FILE, DatasetInfo
from dist_trainer.data.tokens import TokenFile, open_tokens
from dist_trainer.errors import RunError, UserError
from dist_trainer.units import counted


def write_raw(path: Path, values: list[int]) -> Path:
    np.array(values, dtype="<u2").tofile(path)
    return path


def write_llm_c(path: Path, values: list[int], magic: int, version: int, dtype: str) -> Path:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(values)
    path.write_bytes(header.tobytes() + np.array(values, dtype=dtype).tobytes())
    return path


def everything(tokens: TokenFile) -> npt.NDArray[Any]:
    return tokens.read(0, tokens.num_tokens)


def test_a_prepared_folder_opens_with_what_is_known_of_it(prepared: tuple[Path, DatasetInfo]) -> None:
    folder, info = prepared
    for split in ("train", "val"):
        tokens = open_tokens(folder, split, 300)
        assert tokens.path == folder / f"{split}.bin"
        assert (everything(tokens) == np.fromfile(tokens.path, dtype="<u2")).all()
        assert tokens.num_tokens == info.split(split).num_tokens
        assert (tokens.vocab_size, tokens.info) == (300, info)
        assert tokens.unigram_entropy_nats == info.unigram_entropy_nats
        assert not everything(tokens).flags.writeable


def test_nanogpt_files_open_as_a_folder_or_a_file(tmp_path: Path) -> None:
    write_raw(tmp_path / "train.bin", [1, 2, 50256])
    write_raw(tmp_path / "val.bin", [3, 4])
    for path in (tmp_path, tmp_path / "train.bin"):
        train, val = open_tokens(path, "train", 50257), open_tokens(path, "val", 50257)
        assert everything(train).tolist() == [1, 2, 50256]
        assert everything(val).tolist() == [3, 4]
        assert train.vocab_size is None
        assert train.info is None
        assert train.unigram_entropy_nats is None


@pytest.mark.parametrize(
    ("magic", "version", "dtype", "largest"),
    [(20240520, 1, "<u2", 50256), (20240801, 7, "<u4", 128255)],
)
def test_llm_c_files_open_by_their_header(tmp_path: Path, magic: int, version: int, dtype: str, largest: int) -> None:
    write_llm_c(tmp_path / "tiny_train.bin", [5, largest, 7], magic, version, dtype)
    write_llm_c(tmp_path / "tiny_val.bin", [8], magic, version, dtype)
    for path in (tmp_path, tmp_path / "tiny_train.bin"):
        assert everything(open_tokens(path, "train", largest + 1)).tolist() == [5, largest, 7]
        assert everything(open_tokens(path, "val", largest + 1)).tolist() == [8]
    with pytest.raises(UserError, match="beyond the model's vocabulary") as raised:
        open_tokens(tmp_path, "train", largest)
    assert raised.value.where == f"{tmp_path / 'tiny_train.bin'}, token 1"


def test_an_llm_c_file_that_is_cut_short_or_of_another_version_is_named(tmp_path: Path) -> None:
    path = write_llm_c(tmp_path / "train.bin", [1, 2, 3], 20240520, 1, "<u2")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="cut short") as raised:
        open_tokens(path, "train", 100)
    assert raised.value.expected == "1030 bytes, as its header says"
    write_llm_c(path, [1, 2, 3], 20240520, 2, "<u2")
    with pytest.raises(UserError, match="version that is not known") as raised:
        open_tokens(path, "train", 100)
    assert (raised.value.found, raised.value.expected) == (2, "1")


def test_missing_empty_and_odd_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        open_tokens(tmp_path / "missing.bin", "train", 100)
    with pytest.raises(UserError, match="holds no train file"):
        open_tokens(tmp_path, "train", 100)
    (tmp_path / "train.bin").write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        open_tokens(tmp_path, "train", 100)
    (tmp_path / "train.bin").write_bytes(b"abc")
    with pytest.raises(UserError, match="cut short") as raised:
        open_tokens(tmp_path, "train", 100)
    assert raised.value.found == "3 bytes"
    with pytest.raises(UserError, match="no val file beside"):
        open_tokens(tmp_path / "train.bin", "val", 100)


def test_a_folder_of_many_shards_is_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        write_raw(tmp_path / f"fineweb_train_{number:06d}.bin", [1, 2])
    with pytest.raises(UserError, match="more than one train file"):
        open_tokens(tmp_path, "train", 100)


def test_a_token_beyond_the_model_is_found_wherever_it_is_in_a_raw_file(tmp_path: Path) -> None:
    values = [7] * 200_000
    values[150_000] = 100
    write_raw(tmp_path / "train.bin", values)
    open_tokens(tmp_path, "train", 101)
    with pytest.raises(UserError, match="beyond the model's vocabulary") as raised:
        open_tokens(tmp_path, "train", 100)
    assert (raised.value.found, raised.value.expected) == (100, "less than 100")
    assert raised.value.where == f"{tmp_path / 'train.bin'}, token 150000"


@pytest.mark.parametrize(("position", "is_found"), [(0, True), (199_999, True), (100_500, False)])
def test_of_a_large_raw_file_samples_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, position: int, is_found: bool
) -> None:
    monkeypatch.setattr(tokens_module, "_FULL_SCAN_BYTES", 1000)
    monkeypatch.setattr(tokens_module, "_BLOCK_TOKENS", 100)
    values = [7] * 200_000
    values[position] = 100
    write_raw(tmp_path / "train.bin", values)
    if is_found:
        with pytest.raises(UserError, match="beyond the model's vocabulary"):
            open_tokens(tmp_path, "train", 100)
    else:
        open_tokens(tmp_path, "train", 100)


def test_a_prepared_folder_is_checked_against_its_description(
    tmp_path: Path, prepared: tuple[Path, DatasetInfo]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(prepared[0], folder)
    with pytest.raises(UserError, match="beyond the model's vocabulary") as raised:
        open_tokens(folder, "val", 200)
    assert raised.value.key == "max_token"
    assert "300" in str(raised.value.hint)

    whole = (folder / "train.bin").read_bytes()
    for data, problem in ((whole[:-2], "cut short"), (whole + b"xx", "too long"), (b"", "empty")):
        (folder / "train.bin").write_bytes(data)
        with pytest.raises(UserError, match=problem) as raised:
            open_tokens(folder, "train", 300)
        assert raised.value.where == str(folder / "train.bin")
    (folder / "train.bin").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        open_tokens(folder, "train", 300)

    description = json.loads((folder / INFO_FILE).read_text())
    (folder / INFO_FILE).write_text(json.dumps(description | {"dtype": "float64"}))
    with pytest.raises(UserError, match="damaged") as raised:
        open_tokens(folder, "val", 300)
    assert raised.value.key == "dtype"


@pytest.mark.parametrize("most_bytes", [1, 7, 10**6])
def test_rows_are_read_from_each_start_even_if_a_read_gives_less_than_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    tokens = open_tokens(write_raw(tmp_path / "train.bin", list(range(2000))), "train", 2000)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, first: pread(file, min(count, most_bytes), first))
    rows = tokens.read_rows(np.array([1997, 0, 500, 0]), 3)
    assert rows.tolist() == [[1997, 1998, 1999], [0, 1, 2], [500, 501, 502], [0, 1, 2]]
    assert not rows.flags.writeable


def test_it_pickles_as_its_description(prepared: tuple[Path, DatasetInfo]) -> None:
    tokens = open_tokens(prepared[0], "train", 300)
    before = tokens.read(0, 100).tolist()
    data = pickle.dumps(tokens)
    assert len(data) < tokens.num_tokens // 4
    copy = pickle.loads(data)
    assert copy == tokens
    assert copy.read(0, 100).tolist() == before


@pytest.mark.parametrize("cut", [0, 1, 1000])
def test_a_file_that_shrinks_under_its_reader_is_named_with_the_bytes_it_has_and_had(tmp_path: Path, cut: int) -> None:
    path = write_raw(tmp_path / "train.bin", list(range(2000)))
    tokens = open_tokens(path, "train", 2000)
    with path.open("r+b") as file:
        file.truncate(cut)
    with pytest.raises(RunError, match="become shorter") as raised:
        tokens.read(499, 2)
    error = raised.value
    assert (error.where, error.found, error.expected) == (str(path), counted(cut, "byte"), "4000 bytes")


def test_a_file_that_is_removed_or_replaced_is_read_on_as_it_was(
    tmp_path: Path, prepared: tuple[Path, DatasetInfo]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(prepared[0], folder)
    tokens = open_tokens(folder, "train", 300)
    write_raw(folder / "other.bin", [1] * tokens.num_tokens).replace(tokens.path)
    assert (everything(tokens) == np.fromfile(prepared[0] / "train.bin", dtype="<u2")).all()
    shutil.rmtree(folder)
    assert (everything(tokens) == np.fromfile(prepared[0] / "train.bin", dtype="<u2")).all()


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_what_the_file_system_refuses_is_said_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    tokens = open_tokens(write_raw(tmp_path / "train.bin", [1, 2, 3]), "train", 100)

    def refuse(*_: int) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pread", refuse)
    with pytest.raises(RunError, match="no longer be read") as raised:
        tokens.read(0, 1)
    assert (raised.value.where, raised.value.found) == (str(tmp_path / "train.bin"), os.strerror(number))


def test_a_file_that_nobody_may_read_is_named_when_it_is_opened(
    tmp_path: Path, prepared: tuple[Path, DatasetInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    for path in (prepared[0], write_raw(tmp_path / "train.bin", [1, 2])):
        with pytest.raises(UserError, match="a token file cannot be read") as raised:
            open_tokens(path, "train", 300)
        assert raised.value.found == "Permission denied"
        assert str(raised.value.where).endswith("train.bin")


def test_a_reader_that_is_dropped_leaves_no_file_open(tmp_path: Path) -> None:
    tokens = open_tokens(write_raw(tmp_path / "train.bin", [1, 2, 3]), "train", 100)
    num_open = len(psutil.Process().open_files())
    del tokens
    assert len(psutil.Process().open_files()) == num_open - 1
