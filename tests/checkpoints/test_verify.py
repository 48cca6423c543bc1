"""Every bit that is not as it was written is found, by one reader or by many, and named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from checkpoint_folders import checkpoint

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.verify import check_sizes, damages

FILES = ("rank-00000.safetensors", "rank-00001.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint(tmp_path, 8)


def found_in(folder: Path, *, share: int = 0, num_shares: int = 1) -> list[str]:
    found = damages(folder, index.read(folder), share=share, num_shares=num_shares)
    return [f"{damage.file.name} {damage.problem}" for damage in found]


def flip(file: Path, place: int, bit: int = 0) -> None:
    with file.open("r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([byte ^ (1 << bit)]))


def owner_of(folder: Path, file: int, place: int) -> str:
    """What is to be said of a byte."""
    whole = index.read(folder)
    if place < whole.files[file].header_bytes:
        return "the checksum of its header"
    for parameter, state, piece, num_bytes in whole.pieces():
        if piece.file == file and piece.offset <= place < piece.offset + num_bytes:
            return f"the checksum of {parameter}'s {state}"
    raise AssertionError("a byte that belongs to nothing")


def test_a_checkpoint_that_is_as_it_was_written_has_no_damage(folder: Path) -> None:
    check_sizes(folder, index.read(folder))
    assert found_in(folder) == []
    for share in range(5):
        assert found_in(folder, share=share, num_shares=5) == []


@pytest.mark.parametrize("number", [0, 1])
def test_one_bit_anywhere_is_found_and_named(folder: Path, number: int) -> None:
    file = folder / FILES[number]
    for place in range(0, file.stat().st_size, 3):
        flip(file, place, place % 8)
        check_sizes(folder, index.read(folder))
        expected = f"{file.name} is not as it was written: {owner_of(folder, number, place)}"
        assert found_in(folder) == [expected]
        flip(file, place, place % 8)
    assert found_in(folder) == []


@pytest.mark.parametrize("num_shares", [1, 2, 3, 7, 50])
def test_every_damage_is_found_by_exactly_one_of_all_readers(folder: Path, num_shares: int) -> None:
    whole = index.read(folder)
    places = [(number, 0) for number in range(len(FILES))]
    places += [(piece.file, piece.offset) for _, _, piece, _ in whole.pieces()]
    for number, place in places:
        flip(folder / FILES[number], place)
        found = [found_in(folder, share=share, num_shares=num_shares) for share in range(num_shares)]
        assert sorted(map(len, found)) == [0] * (num_shares - 1) + [1]
        assert any(owner_of(folder, number, place) in line for lines in found for line in lines)
        flip(folder / FILES[number], place)


@pytest.mark.parametrize("num_shares", [1, 2, 3, 50])
def test_a_file_that_is_missing_cut_or_longer_is_found_by_its_readers(folder: Path, num_shares: int) -> None:
    file = folder / FILES[1]
    content = file.read_bytes()
    for changed, said in ((None, "is missing"), (content[:-1], "has 807 bytes"), (content + b"\0", "has 809 bytes")):
        file.unlink() if changed is None else file.write_bytes(changed)
        with pytest.raises(DamageError, match=said):
            check_sizes(folder, index.read(folder))
        found = {line for share in range(num_shares) for line in found_in(folder, share=share, num_shares=num_shares)}
        (line,) = found
        assert line.startswith(f"{file.name} {said}")
        file.write_bytes(content)


def test_damage_in_both_files_is_told_of_both(folder: Path) -> None:
    flip(folder / FILES[0], 9)
    (folder / FILES[1]).unlink()
    assert found_in(folder) == [
        f"{FILES[0]} is not as it was written: the checksum of its header",
        f"{FILES[1]} is missing",
    ]


def test_files_of_another_checkpoint_are_found_even_where_their_sizes_agree(folder: Path) -> None:
    other = checkpoint(folder.parent, 12)
    shutil.copy(other / FILES[1], folder / FILES[1])
    check_sizes(folder, index.read(folder))
    assert found_in(folder) == [f"{FILES[1]} is not as it was written: the checksum of wte.weight's weight"]


def test_files_of_two_ranks_that_are_swapped_are_found(folder: Path) -> None:
    first, second, aside = folder / FILES[0], folder / FILES[1], folder / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    assert len(found_in(folder)) == 2
    # Even if they were of one size.
    os.truncate(first, 496)
    os.truncate(second, 808)
    check_sizes(folder, index.read(folder))
    assert len(found_in(folder)) == 2


def test_pieces_within_a_file_that_are_swapped_are_found(folder: Path) -> None:
    file = folder / FILES[0]
    content = bytearray(file.read_bytes())
    content[160:328], content[328:496] = content[328:496], content[160:328]
    file.write_bytes(content)
    assert found_in(folder) == [f"{FILES[0]} is not as it was written: the checksum of wte.weight's weight"]
