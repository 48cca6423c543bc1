"""A rank's file of tensors: what others read in it, and that only the file that was written is opened."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_folders import parts_of, values_of
from safetensors import safe_open
from safetensors.torch import load_file
from xxhash import xxh3_128_hexdigest

from dist_trainer.checkpoints import data_file
from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.data_file import DataFile, Layout, Part

PARTS = parts_of(1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "step-8" / "rank-00001.safetensors"
    path.parent.mkdir()
    data_file.write(path, layout_of(), contents())
    return path


def layout_of() -> Layout:
    return data_file.lay_out(PARTS)


def contents() -> list[memoryview]:
    return [memoryview(values_of(part, 8)) for part in PARTS]


def opened(path: Path) -> DataFile:
    return DataFile(path, path.parent, layout_of().num_bytes)


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def problem(path: Path) -> str:
    num_open = num_open_files()
    with pytest.raises(DamageError) as caught:
        opened(path)
    assert caught.value.file == path
    assert num_open_files() == num_open
    return caught.value.problem


def test_the_library_of_safetensors_reads_what_was_written(file: Path) -> None:
    tensors = load_file(file)
    assert list(tensors) and set(tensors) == {part.name for part in PARTS}
    for part in PARTS:
        assert tensors[part.name].dtype == torch.float32
        assert tensors[part.name].tolist() == list(values_of(part, 8))


def test_a_name_says_the_parameter_the_state_and_the_first_element(file: Path) -> None:
    with safe_open(file, framework="pt") as tensors:
        assert "wte.weight/exp_avg/42" in tensors.keys()  # noqa: SIM118 - it is no mapping
        assert tensors.get_slice("wte.weight/exp_avg/42").get_shape() == [30]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("F32", torch.float32), ("BF16", torch.bfloat16), ("F16", torch.float16), ("F64", torch.float64)],
)
def test_every_dtype_is_the_librarys(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    written = torch.arange(7).to(dtype)
    layout = data_file.lay_out([Part("a", "weight", 3, 10, name)])
    data_file.write(tmp_path / "x", layout, [memoryview(written.view(torch.uint8).numpy())])
    read = load_file(tmp_path / "x")["a/weight/3"]
    assert read.dtype == dtype and torch.equal(read, written)


def test_a_rank_that_has_nothing_writes_a_file_that_is_one(tmp_path: Path) -> None:
    layout = data_file.lay_out([])
    assert data_file.write(tmp_path / "x", layout, []).parts == ()
    assert (tmp_path / "x").stat().st_size == layout.num_bytes == len(layout.header)
    assert load_file(tmp_path / "x") == {}


def test_parts_lie_one_after_the_other_behind_the_header(file: Path) -> None:
    layout = layout_of()
    length = int.from_bytes(layout.header[:8], "little")
    assert len(layout.header) == 8 + length and length % 8 == 0
    assert [entry["shape"] for entry in json.loads(layout.header[8:]).values()] == [[30], [8], [5]] * 2
    ends = [offset + part.num_bytes for offset, part in zip(layout.offsets, PARTS, strict=True)]
    assert [len(layout.header), *ends] == [*layout.offsets, layout.num_bytes]
    assert file.stat().st_size == layout.num_bytes


def test_checksums_are_those_of_the_bytes_on_the_disk(tmp_path: Path) -> None:
    layout = layout_of()
    written = data_file.write(tmp_path / "x", layout, contents())
    there = (tmp_path / "x").read_bytes()
    assert written.header == xxh3_128_hexdigest(there[: len(layout.header)])
    for part, offset, checksum in zip(PARTS, layout.offsets, written.parts, strict=True):
        assert checksum == xxh3_128_hexdigest(there[offset : offset + part.num_bytes])
    with opened(tmp_path / "x") as one:
        for size in (1, 7, 4096):
            buffer = memoryview(bytearray(size))
            sums = [
                one.checksum(offset, part.num_bytes, buffer) for part, offset in zip(PARTS, layout.offsets, strict=True)
            ]
            assert tuple(sums) == written.parts


def test_more_than_a_block_is_written_and_read_whole(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, 17 * 2**20 + 3, dtype=np.uint8)
    layout = data_file.lay_out([Part("a", "weight", 0, values.size, "U8")])
    written = data_file.write(tmp_path / "x", layout, [memoryview(values)])
    read = np.zeros_like(values)
    with DataFile(tmp_path / "x", tmp_path, layout.num_bytes) as one:
        one.read_into(memoryview(read), layout.offsets[0])
        assert one.checksum(layout.offsets[0], values.size, data_file.block_buffer()) == written.parts[0]
    assert np.array_equal(read, values)
    assert written.parts[0] == xxh3_128_hexdigest(values.tobytes())


def test_any_elements_are_read_from_their_offset(file: Path) -> None:
    layout = layout_of()
    read = array("f", [0.0] * 4)
    with opened(file) as one:
        one.read_into(memoryview(read), layout.offsets[0] + 2 * 4)
        assert list(read) == list(values_of(PARTS[0], 8))[2:6]
        with pytest.raises(DamageError, match="was cut short"):
            one.read_into(memoryview(read), layout.num_bytes - 8)
        with pytest.raises(DamageError, match="was cut short"):
            one.checksum(0, 2**50, memoryview(bytearray(4096)))


def test_a_file_that_is_there_is_not_written_over(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(FileExistsError):
        data_file.write(file, layout_of(), contents())
    outside = file.parents[1] / "precious"
    (file.parent / "link").symlink_to(outside)
    with pytest.raises(FileExistsError):
        data_file.write(file.parent / "link", layout_of(), contents())
    assert file.read_bytes() == before and not outside.exists()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def lengthened(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)


def enormous(path: Path) -> None:
    os.truncate(path, 2**42)


def linked_out(path: Path) -> None:
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to("../elsewhere")


def linked_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def linked_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "is missing"),
        (cut, "has 807 bytes and was written with 808"),
        (emptied, "has 0 bytes and was written with 808"),
        (lengthened, "has 809 bytes and was written with 808"),
        (enormous, "and was written with 808"),
        (linked_out, "is a link that leads out of the checkpoint's folder"),
        (linked_to_itself, "cannot be read"),
        (linked_to_nothing, "is missing"),
        (as_fifo, "is not a regular file"),
        (as_device, "is not a regular file"),
        (as_folder, "is not a regular file"),
    ],
)
def test_anything_but_the_file_that_was_written_is_not_opened(
    file: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(file)
    assert said in problem(file)


def test_a_device_is_not_even_opened(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_device(file)
    monkeypatch.setattr(data_file.os, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(DamageError):
        opened(file)


def test_a_link_within_the_folder_is_followed(file: Path) -> None:
    file.rename(file.parent / "kept")
    file.symlink_to("kept")
    opened(file).close()


def test_a_file_that_is_cut_while_it_is_open_is_told(file: Path) -> None:
    with opened(file) as one:
        os.truncate(file, 300)
        with pytest.raises(DamageError, match="was cut short while it was read"):
            one.read_into(memoryview(bytearray(600)), 8)
