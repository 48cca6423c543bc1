from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.data.atomic_folder import atomic_folder, remove_abandoned
from dist_trainer.errors import UserError


def test_the_output_appears_only_when_the_block_has_ended(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    with atomic_folder(output) as folder:
        (folder / "file").write_text("x")
        assert not output.exists()
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert (output / "file").read_text() == "x"


def test_an_empty_output_folder_is_filled(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as folder:
        (tmp_path / "out").mkdir()
        (folder / "file").write_text("x")
    assert (tmp_path / "out" / "file").exists()


def test_nothing_stays_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_file", [True, False])
def test_an_output_with_something_in_it_is_refused_and_kept(tmp_path: Path, is_file: bool) -> None:
    output = tmp_path / "out"
    kept = output if is_file else output / "kept"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("kept")
    with pytest.raises(UserError, match="exists already"), atomic_folder(output):
        pytest.fail("the block must not run")
    assert kept.read_text() == "kept"


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"), atomic_folder(tmp_path / "out") as second:
        (second / "file").write_text("second")
        with atomic_folder(tmp_path / "out") as first:
            (first / "file").write_text("first")
    assert (tmp_path / "out" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written") as raised, atomic_folder(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")
    assert raised.value.where == str(tmp_path / "file" / "out")


def test_what_a_killed_writer_left_can_be_removed(tmp_path: Path) -> None:
    for name in (".out.partial-1-abcd", ".other.partial-1-abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    remove_abandoned(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [".other.partial-1-abcd"]
