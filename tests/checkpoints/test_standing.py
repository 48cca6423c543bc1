"""A list of checkpoints says of each whether it is whole, what is wrong with it, and which is resumed from."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_folders import CONTENT_FILE, checkpoint, write_ranks_files

from dist_trainer.checkpoints import folder, index
from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.standing import folders_at, list_checkpoints, one_at, standing_of, whole_at
from dist_trainer.errors import UserError


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for step in (8, 12):
        checkpoint(tmp_path / "run" / "checkpoints", step)
    return tmp_path / "run"


def test_whole_ones_are_listed_the_newest_first(run_dir: Path) -> None:
    for path in (run_dir, run_dir / "checkpoints"):
        found = list_checkpoints(path)
        assert [standing.folder.name for standing in found.standings] == ["step-12", "step-8"]
        assert all(standing.index and standing.made_s and not standing.damages for standing in found.standings)
        assert found.latest == "step-12"
        assert isinstance(found.resumed, Path)
        assert found.resumed.name == "step-12"
        assert found.leftovers == ()


def test_every_damaged_file_is_named_and_the_one_before_is_resumed_from(run_dir: Path) -> None:
    damaged = run_dir / "checkpoints" / "step-12"
    (damaged / CONTENT_FILE).unlink()
    (damaged / index.data_file_name(1)).write_bytes(b"short")
    found = list_checkpoints(run_dir)
    assert [damage.file.name for damage in found.standings[0].damages] == [CONTENT_FILE, index.data_file_name(1)]
    assert isinstance(found.resumed, Path)
    assert found.resumed.name == "step-8"
    assert "step-8, the newest that is whole, is resumed from" in found.notices[0]


def test_where_none_is_whole_it_is_said_that_a_run_is_refused(run_dir: Path) -> None:
    for step in (8, 12):
        (run_dir / "checkpoints" / f"step-{step}" / index.INDEX_FILE).write_text("{}")
    found = list_checkpoints(run_dir)
    assert isinstance(found.resumed, UserError)
    assert all(standing.index is None and len(standing.damages) == 1 for standing in found.standings)


def test_a_latest_that_is_missing_is_told(run_dir: Path) -> None:
    (run_dir / "checkpoints" / "latest").unlink()
    found = list_checkpoints(run_dir)
    assert isinstance(found.latest, DamageError)
    assert isinstance(found.resumed, Path)
    assert found.resumed.name == "step-12"


def test_a_link_that_leads_out_is_listed_as_damaged(run_dir: Path, tmp_path: Path) -> None:
    outside = checkpoint(tmp_path / "other", 16)
    (run_dir / "checkpoints" / "step-16").symlink_to(outside)
    first = list_checkpoints(run_dir).standings[0]
    assert first.index is None
    assert "leads out" in first.damages[0].problem


def test_leftovers_are_told_with_what_becomes_of_them_and_stay(run_dir: Path) -> None:
    checkpoints_dir = run_dir / "checkpoints"
    cut = folder.begin(checkpoints_dir, 16)
    whole = folder.begin(checkpoints_dir, 20)
    index.write(whole, write_ranks_files(whole, 20))
    found = {leftover.path: leftover for leftover in list_checkpoints(run_dir).leftovers}
    assert {path: leftover.becomes_checkpoint for path, leftover in found.items()} == {cut: False, whole: True}
    assert cut.is_dir()


def test_where_only_a_cut_off_save_is_there_a_run_starts_from_the_beginning(tmp_path: Path) -> None:
    for name in ("checkpoints", "others"):
        folder.begin(tmp_path / name, 8)
        found = list_checkpoints(tmp_path / name)
        assert (found.standings, found.resumed, len(found.leftovers)) == ((), None, 1)


def test_one_checkpoint_is_no_list(run_dir: Path) -> None:
    with pytest.raises(UserError, match="one checkpoint") as refused:
        list_checkpoints(run_dir / "checkpoints" / "step-8")
    assert "checkpoint inspect" in str(refused.value.hint)


@pytest.mark.parametrize("name", ["nothing", "."])
def test_where_nothing_is_there_it_is_said(tmp_path: Path, name: str) -> None:
    for look in (list_checkpoints, folders_at, one_at):
        with pytest.raises(UserError, match="there is no checkpoint"):
            look(tmp_path / name)


def test_of_several_the_one_that_is_resumed_from_is_meant(run_dir: Path) -> None:
    checkpoints_dir = run_dir / "checkpoints"
    assert one_at(run_dir) == checkpoints_dir / "step-12"
    assert one_at(checkpoints_dir / "step-8") == checkpoints_dir / "step-8"
    (checkpoints_dir / "step-12" / CONTENT_FILE).unlink()
    assert whole_at(run_dir).folder == checkpoints_dir / "step-8"
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        whole_at(checkpoints_dir / "step-12")


def test_an_index_of_another_step_is_no_index_of_this_one(run_dir: Path) -> None:
    (run_dir / "checkpoints" / "step-12").rename(run_dir / "checkpoints" / "step-99")
    assert standing_of(run_dir / "checkpoints" / "step-99").damages[0].problem == "is that of step 12"
