"""Whatever moment a save, a replacement or a deletion is cut off at: what has a checkpoint's name is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkpoint_folders import CONTENT_FILE, checkpoint, made, position, write_ranks_files
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_trainer.checkpoints import folder as folders
from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.find import find
from dist_trainer.checkpoints.folder import (
    LATEST_FILE,
    begin,
    clear_leftovers,
    is_whole,
    name_of,
    prune,
    publish,
    saves,
    step_of,
)
from dist_trainer.checkpoints.index import INDEX_FILE, Made
from dist_trainer.checkpoints.verify import check_sizes

OLD, NEW = made(versions={"torch": "old"}), made(versions={"torch": "new"})


@pytest.fixture
def checkpoints_dir(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


class Killed(BaseException):
    """In place of a SIGKILL: no handler in the code may catch it."""


@contextmanager
def killed_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Before the operation of this number that changes a folder's names. Gives the operations that were done."""
    done: list[str] = []

    def counted(name: str, operation: Callable[..., object]) -> Callable[..., object]:
        def instead(*arguments: object, **named: object) -> object:
            if len(done) == moment:
                raise Killed
            done.append(name)
            return operation(*arguments, **named)

        return instead

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "rename"), (Path, "replace"), (Path, "unlink"), (shutil, "rmtree")):
            patch.setattr(owner, name, counted(name, getattr(owner, name)))
        try:
            yield done
        except Killed:
            done.append("killed")


def names(checkpoints_dir: Path) -> list[str]:
    return sorted(path.name for path in checkpoints_dir.iterdir())


def assert_whole(folder: Path) -> Made:
    whole = index.read(folder)
    check_sizes(folder, whole)
    return whole.made_by


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-0", 0),
        ("step-12", 12),
        ("step-" + "9" * 18, 10**18 - 1),
        ("step-" + "9" * 19, None),
        ("step-012", None),
        ("step--1", None),
        ("step-1\n", None),
        ("step-\u0661", None),
        ("step-", None),
        (".step-1.saving", None),
        ("latest", None),
    ],
)
def test_only_a_whole_number_in_its_one_form_is_a_step(name: str, step: int | None) -> None:
    assert step_of(Path("run") / name) == step
    assert step is None or name_of(step) == name


def test_saves_are_the_step_folders_by_number_without_links_and_files(checkpoints_dir: Path) -> None:
    assert saves(checkpoints_dir) == []
    for step in (9, 100, 10):
        checkpoint(checkpoints_dir, step)
    begin(checkpoints_dir, 11)
    (checkpoints_dir / "step-200").symlink_to("step-100")
    (checkpoints_dir / "step-300").write_text("")
    assert saves(checkpoints_dir) == [checkpoints_dir / f"step-{step}" for step in (100, 10, 9)]


def test_a_checkpoint_is_written_under_a_name_that_no_reader_takes(checkpoints_dir: Path) -> None:
    aside = begin(checkpoints_dir, 8)
    written = write_ranks_files(aside, 8)
    index.write(aside, written)
    assert saves(checkpoints_dir) == []
    assert find("auto", checkpoints_dir.parent).found is None
    assert publish(aside, written) == checkpoints_dir / "step-8"
    assert names(checkpoints_dir) == [LATEST_FILE, "step-8"]
    assert (checkpoints_dir / LATEST_FILE).read_text() == "step-8"
    assert_whole(checkpoints_dir / "step-8")


def test_what_an_earlier_save_of_the_step_left_is_not_in_the_new_one(checkpoints_dir: Path) -> None:
    (begin(checkpoints_dir, 8) / "old").write_text("")
    assert list(begin(checkpoints_dir, 8).iterdir()) == []


def test_at_every_moment_of_a_save_a_reader_finds_the_old_or_the_new_one(
    checkpoints_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for moment in range(20):
        shutil.rmtree(checkpoints_dir, ignore_errors=True)
        checkpoint(checkpoints_dir, 4)
        with killed_at(moment, monkeypatch) as done:
            checkpoint(checkpoints_dir, 8)
        for folder in saves(checkpoints_dir):
            assert_whole(folder)
        resume = find("auto", checkpoints_dir.parent)
        assert resume.found is not None
        found.append(resume.found.index.position.step)
        clear_leftovers(checkpoints_dir)
        again = find("auto", checkpoints_dir.parent)
        assert again.found is not None and again.found.index.position.step == found[-1]
        assert all(step_of(folder) is not None or folder.name == LATEST_FILE for folder in _visible(checkpoints_dir))
        if "killed" not in done:
            break
    assert set(found) == {4, 8} and sorted(found) == found


def test_at_every_moment_of_replacing_a_step_one_of_the_two_is_kept(
    checkpoints_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    for moment in range(20):
        shutil.rmtree(checkpoints_dir, ignore_errors=True)
        checkpoint(checkpoints_dir, 8, made_by=OLD)
        with killed_at(moment, monkeypatch) as done:
            checkpoint(checkpoints_dir, 8, made_by=NEW)
        for folder in saves(checkpoints_dir):
            assert_whole(folder)
        clear_leftovers(checkpoints_dir)
        assert [name for name in names(checkpoints_dir) if name.startswith(".step")] == []
        resume = find("auto", checkpoints_dir.parent)
        assert resume.found is not None and resume.notices == ()
        assert_whole(resume.found.folder)
        kept.append(resume.found.index.made_by.versions["torch"])
        if "killed" not in done:
            break
    assert set(kept) == {"old", "new"} and sorted(kept, reverse=True) == kept


def _visible(checkpoints_dir: Path) -> list[Path]:
    return [path for path in checkpoints_dir.iterdir() if not path.name.startswith(".")]


def test_a_replaced_step_is_gone_with_all_its_files(checkpoints_dir: Path) -> None:
    (checkpoint(checkpoints_dir, 8, made_by=OLD) / "notes.txt").write_text("mine")
    folder = checkpoint(checkpoints_dir, 8, made_by=NEW)
    assert assert_whole(folder) == NEW
    assert not (folder / "notes.txt").exists()
    assert names(checkpoints_dir) == [LATEST_FILE, "step-8"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_under_the_name_of_the_step_is_replaced_and_not_followed(checkpoints_dir: Path, is_there: bool) -> None:
    outside = checkpoints_dir.parents[1] / "precious"
    if is_there:
        checkpoint(outside.parent, 8).rename(outside)
    checkpoints_dir.mkdir(parents=True)
    (checkpoints_dir / "step-8").symlink_to(outside)
    folder = checkpoint(checkpoints_dir, 8, made_by=NEW)
    assert not folder.is_symlink() and assert_whole(folder) == NEW
    assert names(checkpoints_dir) == [LATEST_FILE, "step-8"]
    if is_there:
        assert_whole(outside)


def test_a_link_in_the_place_of_what_is_put_aside_is_not_followed(checkpoints_dir: Path) -> None:
    outside = checkpoint(checkpoints_dir.parents[1], 8)
    checkpoint(checkpoints_dir, 4)
    checkpoint(checkpoints_dir, 8, made_by=OLD)
    for name in (".step-8.saving", ".step-8.replaced", ".step-4.deleting"):
        (checkpoints_dir / name).symlink_to(outside)
    checkpoint(checkpoints_dir, 8, made_by=NEW)
    assert prune(checkpoints_dir, newest=1, every_steps=0) == [checkpoints_dir / "step-4"]
    assert names(checkpoints_dir) == [LATEST_FILE, "step-8"]
    assert_whole(outside)


def test_links_within_a_checkpoint_are_deleted_and_not_what_they_lead_to(checkpoints_dir: Path) -> None:
    outside = checkpoint(checkpoints_dir.parents[1], 8)
    (checkpoint(checkpoints_dir, 4) / "link").symlink_to(outside)
    checkpoint(checkpoints_dir, 8)
    prune(checkpoints_dir, newest=1, every_steps=0)
    assert names(checkpoints_dir) == [LATEST_FILE, "step-8"]
    assert_whole(outside)


def test_a_save_that_failed_is_removed_and_to_remove_it_cannot_fail(checkpoints_dir: Path) -> None:
    aside = begin(checkpoints_dir, 8)
    (aside / CONTENT_FILE).write_text("half")
    folders.abandon(aside)
    folders.abandon(aside)
    assert names(checkpoints_dir) == []


def test_without_leftovers_there_is_nothing_to_clear(checkpoints_dir: Path) -> None:
    assert clear_leftovers(checkpoints_dir) == []
    checkpoint(checkpoints_dir, 8)
    assert clear_leftovers(checkpoints_dir) == []
    assert names(checkpoints_dir) == [LATEST_FILE, "step-8"]


def test_a_save_that_was_cut_off_is_removed_and_told(checkpoints_dir: Path) -> None:
    checkpoint(checkpoints_dir, 4)
    aside = begin(checkpoints_dir, 8)
    write_ranks_files(aside, 8)
    (line,) = clear_leftovers(checkpoints_dir)
    assert "the save of step-8 was cut off" in line and str(aside) in line
    assert names(checkpoints_dir) == [LATEST_FILE, "step-4"]


def leave(checkpoints_dir: Path, what: str, *, is_whole: bool = True, made_by: Made | None = None) -> None:
    """A folder of step 8 as a run that was killed leaves it."""
    aside = checkpoints_dir / f".step-8.{what}"
    aside.mkdir(parents=True)
    written = write_ranks_files(aside, 8, made_by=made_by)
    if is_whole:
        index.write(aside, written)


@pytest.mark.parametrize("what", ["saving", "replaced"])
def test_a_leftover_that_is_whole_gets_its_name(checkpoints_dir: Path, what: str) -> None:
    leave(checkpoints_dir, what)
    assert clear_leftovers(checkpoints_dir) == []
    assert names(checkpoints_dir) == ["step-8"]
    assert_whole(checkpoints_dir / "step-8")


@pytest.mark.parametrize("what", ["saving", "replaced"])
@pytest.mark.parametrize("damage", [INDEX_FILE, CONTENT_FILE])
def test_a_leftover_that_is_not_whole_gets_no_name(checkpoints_dir: Path, what: str, damage: str) -> None:
    leave(checkpoints_dir, what)
    (checkpoints_dir / f".step-8.{what}" / damage).unlink()
    assert len(clear_leftovers(checkpoints_dir)) == (what == "saving")
    assert names(checkpoints_dir) == []


@pytest.mark.parametrize("what", ["saving", "replaced"])
def test_a_leftover_does_not_take_the_place_of_a_checkpoint(checkpoints_dir: Path, what: str) -> None:
    checkpoint(checkpoints_dir, 8, made_by=NEW)
    leave(checkpoints_dir, what, made_by=OLD)
    clear_leftovers(checkpoints_dir)
    assert names(checkpoints_dir) == [LATEST_FILE, "step-8"]
    assert assert_whole(checkpoints_dir / "step-8") == NEW


def test_of_a_save_cut_off_between_its_two_renames_the_new_one_is_taken(checkpoints_dir: Path) -> None:
    leave(checkpoints_dir, "replaced", made_by=OLD)
    leave(checkpoints_dir, "saving", made_by=NEW)
    clear_leftovers(checkpoints_dir)
    assert names(checkpoints_dir) == ["step-8"]
    assert assert_whole(checkpoints_dir / "step-8") == NEW


def test_a_deletion_that_was_cut_off_is_ended(checkpoints_dir: Path) -> None:
    leave(checkpoints_dir, "deleting")
    assert clear_leftovers(checkpoints_dir) == []
    assert names(checkpoints_dir) == []


def test_leftovers_that_are_links_or_files_or_have_other_names_are_left_alone(checkpoints_dir: Path) -> None:
    outside = checkpoint(checkpoints_dir.parents[1], 8)
    checkpoints_dir.mkdir(parents=True)
    (checkpoints_dir / ".step-8.saving").symlink_to(outside)
    (checkpoints_dir / ".step-9.deleting").symlink_to(outside)
    (checkpoints_dir / ".step-10.saving").write_text("")
    for name in (".step-08.saving", ".step-8.deleting.old", "notes", ".step-8", "step-8.saving"):
        (checkpoints_dir / name).mkdir()
    before = names(checkpoints_dir)
    assert clear_leftovers(checkpoints_dir) == []
    assert names(checkpoints_dir) == before
    assert_whole(outside)


def numbered(deleted: list[Path]) -> list[int]:
    return [step_of(folder) or 0 for folder in deleted]


@pytest.mark.parametrize(
    ("newest", "every_steps", "kept"),
    [
        (0, 0, [4, 8, 12, 16, 20]),
        (0, 8, [4, 8, 12, 16, 20]),
        (1, 0, [20]),
        (2, 0, [16, 20]),
        (1, 8, [8, 16, 20]),
        (2, 12, [12, 16, 20]),
        (9, 0, [4, 8, 12, 16, 20]),
    ],
)
def test_the_newest_and_every_nth_are_kept(
    checkpoints_dir: Path, newest: int, every_steps: int, kept: list[int]
) -> None:
    for step in (4, 8, 12, 16, 20):
        checkpoint(checkpoints_dir, step)
    deleted = prune(checkpoints_dir, newest=newest, every_steps=every_steps)
    assert sorted(numbered(deleted)) == [step for step in (4, 8, 12, 16, 20) if step not in kept]
    assert sorted(numbered(saves(checkpoints_dir))) == kept
    assert [name for name in names(checkpoints_dir) if name.startswith(".")] == []


def test_a_new_one_with_fewer_steps_than_those_that_are_there_is_kept(checkpoints_dir: Path) -> None:
    # As after a run was resumed from step 4.
    for step in (4, 8, 12, 6):
        checkpoint(checkpoints_dir, step)
    assert numbered(prune(checkpoints_dir, newest=1, every_steps=0)) == [8, 4]
    assert (checkpoints_dir / LATEST_FILE).read_text() == "step-6"
    assert numbered(saves(checkpoints_dir)) == [12, 6]


@pytest.mark.parametrize("damage", [Path.unlink, lambda latest: latest.write_bytes(b"\xff" * 99)], ids=["none", "long"])
def test_without_a_sound_latest_the_newest_are_kept(checkpoints_dir: Path, damage: Callable[[Path], None]) -> None:
    for step in (4, 8, 12):
        checkpoint(checkpoints_dir, step)
    damage(checkpoints_dir / LATEST_FILE)
    assert numbered(prune(checkpoints_dir, newest=1, every_steps=0)) == [8, 4]


def test_a_damaged_one_that_is_older_than_those_to_keep_is_deleted(checkpoints_dir: Path) -> None:
    for step in (4, 8, 12):
        checkpoint(checkpoints_dir, step)
    (checkpoints_dir / "step-8" / CONTENT_FILE).unlink()
    assert numbered(prune(checkpoints_dir, newest=1, every_steps=0)) == [8, 4]


@pytest.mark.parametrize("damage", [INDEX_FILE, CONTENT_FILE])
def test_the_last_whole_one_is_kept_however_many_newer_ones_are_damaged(checkpoints_dir: Path, damage: str) -> None:
    for step in (4, 8, 12, 16):
        folder = checkpoint(checkpoints_dir, step)
        if step > 8:
            (folder / damage).unlink()
    assert numbered(prune(checkpoints_dir, newest=1, every_steps=0)) == [4]
    assert numbered(saves(checkpoints_dir)) == [16, 12, 8]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from(("whole", "whole", INDEX_FILE, CONTENT_FILE))), max_size=8),
    st.integers(1, 3),
    st.sampled_from((0, 2, 3)),
)
@settings(max_examples=60)
def test_whatever_was_saved_and_damaged_the_newest_whole_one_and_every_nth_are_kept(
    saved: list[tuple[int, str]], newest: int, every_steps: int
) -> None:
    """Steps also come again, and smaller ones after larger ones, as after a run was resumed from before them."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints_dir = Path(folder) / "checkpoints"
        for step, damage in saved:
            checkpoint(checkpoints_dir, step)
            before = {path for path in saves(checkpoints_dir) if is_whole(path)}
            deleted = set(prune(checkpoints_dir, newest=newest, every_steps=every_steps))
            whole = [path for path in saves(checkpoints_dir) if is_whole(path)]
            newest_whole = sorted(before, key=lambda path: step_of(path) or 0)[-newest:]
            assert {checkpoints_dir / name_of(step), *newest_whole} <= set(whole)
            assert set(whole) == before - deleted
            assert not [path for path in deleted if every_steps and (step_of(path) or 0) % every_steps == 0]
            if damage != "whole":
                (checkpoints_dir / name_of(step) / damage).unlink()


def test_links_are_neither_counted_nor_deleted(checkpoints_dir: Path) -> None:
    for step in (4, 8):
        checkpoint(checkpoints_dir, step)
    (checkpoints_dir / "step-12").symlink_to("step-4")
    assert numbered(prune(checkpoints_dir, newest=2, every_steps=0)) == []
    assert numbered(prune(checkpoints_dir, newest=1, every_steps=0)) == [4]
    assert (checkpoints_dir / "step-12").is_symlink()


def test_a_deletion_that_is_cut_off_leaves_nothing_that_looks_whole(
    checkpoints_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment in range(6):
        shutil.rmtree(checkpoints_dir, ignore_errors=True)
        for step in (4, 8):
            checkpoint(checkpoints_dir, step)
        with killed_at(moment, monkeypatch):
            prune(checkpoints_dir, newest=1, every_steps=0)
        assert_whole(checkpoints_dir / "step-8")
        if (checkpoints_dir / "step-4").exists():
            assert_whole(checkpoints_dir / "step-4")
        clear_leftovers(checkpoints_dir)
        assert [name for name in names(checkpoints_dir) if name.startswith(".")] == []


def test_a_new_latest_is_there_as_a_whole(checkpoints_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(checkpoints_dir, 4)
    seen: list[str] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        seen.append((checkpoints_dir / LATEST_FILE).read_text())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    checkpoint(checkpoints_dir, 8)
    assert set(seen) == {"step-4", "step-8"}
    assert index.read(checkpoints_dir / "step-8").position == position(8)


def test_what_a_killed_process_left_of_latest_is_used_up_and_not_followed(checkpoints_dir: Path) -> None:
    outside = checkpoints_dir.parents[1] / "precious"
    outside.parent.mkdir(parents=True, exist_ok=True)
    outside.write_text("mine")
    checkpoints_dir.mkdir(parents=True)
    (checkpoints_dir / ".latest.new").symlink_to(outside)
    checkpoint(checkpoints_dir, 8)
    assert outside.read_text() == "mine"
    assert names(checkpoints_dir) == [LATEST_FILE, "step-8"]
