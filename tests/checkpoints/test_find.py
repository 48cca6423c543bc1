"""Which checkpoint `--resume` means, and that one which is not whole is never taken."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_folders import CONTENT_FILE, checkpoint, position

from dist_trainer.checkpoints.card import CARD_FILE
from dist_trainer.checkpoints.find import LATEST_FILE, find
from dist_trainer.errors import UserError


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run_dir = tmp_path / "run"
    for step in (4, 8):
        checkpoint(run_dir / "checkpoints", step)
    return run_dir


def refused(resume: str, run_dir: Path | None = None) -> UserError:
    with pytest.raises(UserError) as caught:
        find(resume, run_dir)
    return caught.value


def test_auto_is_the_newest_of_the_runs_folder(run_dir: Path) -> None:
    resume = find("auto", run_dir)
    assert resume.found is not None
    assert resume.found.folder == run_dir / "checkpoints" / "step-8"
    assert resume.found.card.position == position(8)
    assert resume.notices == ()


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_without_checkpoints_or_with_never_a_run_starts_anew(run_dir: Path, resume: str) -> None:
    there = run_dir if resume == "never" else run_dir / "elsewhere"
    assert find(resume, there).found is None
    assert find(resume, None).found is None


@pytest.mark.parametrize(
    ("path", "step"), [("", "step-8"), ("checkpoints", "step-8"), ("checkpoints/step-4", "step-4"), ("link", "step-4")]
)
def test_a_path_is_a_run_its_checkpoints_or_one_of_them(run_dir: Path, path: str, step: str, tmp_path: Path) -> None:
    (run_dir / "link").symlink_to("checkpoints/step-4")
    found = find(str(run_dir / path), tmp_path / "other").found
    assert found is not None
    assert found.folder == (run_dir / "checkpoints" / step).resolve()


def test_a_checkpoint_that_was_copied_elsewhere_is_one(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "best"
    shutil.copytree(run_dir / "checkpoints" / "step-4", copy)
    assert find(str(copy), None).found is not None


def test_a_path_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    assert refused(str(tmp_path)).problem == "no checkpoint to resume from"


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def linked_out(path: Path) -> None:
    outside = path.parents[3] / path.name
    path.rename(outside)
    path.symlink_to(outside)


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", [CARD_FILE, CONTENT_FILE, "random-rank-0.pt"])
@pytest.mark.parametrize("damage", [Path.unlink, truncated, emptied, linked_out, as_fifo])
@pytest.mark.parametrize("resume", ["auto", "run", "step"])
def test_a_checkpoint_that_is_not_whole_is_named_with_its_file_and_an_older_one_that_is(
    run_dir: Path, name: str, damage: Callable[[Path], None], resume: str
) -> None:
    folder = run_dir / "checkpoints" / "step-8"
    damage(folder / name)
    error = refused({"auto": "auto", "run": str(run_dir), "step": str(folder)}[resume], run_dir)
    assert error.where == str(folder / name)
    assert name in error.problem
    assert error.hint is not None and f"--resume {folder.parent / 'step-4'}" in error.hint


def test_where_no_other_is_whole_nothing_is_said_to_be(run_dir: Path) -> None:
    for step in (4, 8):
        (run_dir / "checkpoints" / f"step-{step}" / CONTENT_FILE).unlink()
    hint = refused("auto", run_dir).hint
    assert hint is not None and "no other checkpoint beside it is whole" in hint


def test_one_rank_looks_at_the_files_for_all(run_dir: Path) -> None:
    (run_dir / "checkpoints" / "step-8" / CONTENT_FILE).unlink()
    assert find("auto", run_dir, with_files=False).found is not None


@pytest.mark.parametrize(
    "text", ["", "\0", "step-99", "../step-8", "step-8/../step-4", "/tmp", "step-08", "step--1", "step-8 ", "s" * 99]
)
def test_a_latest_that_names_no_checkpoint_beside_it_is_told(run_dir: Path, text: str) -> None:
    latest = run_dir / "checkpoints" / LATEST_FILE
    latest.write_text(text)
    for resume in ("auto", str(run_dir)):
        error = refused(resume, run_dir)
        assert error.where == str(latest)
        assert error.hint is not None and f"--resume {latest.parent / 'step-8'}" in error.hint


def test_a_latest_that_is_not_text_is_told(run_dir: Path) -> None:
    (run_dir / "checkpoints" / LATEST_FILE).write_bytes(b"step-\xff")
    assert "does not name a checkpoint" in refused("auto", run_dir).problem


def test_a_missing_latest_beside_checkpoints_does_not_start_a_run_anew(run_dir: Path) -> None:
    (run_dir / "checkpoints" / LATEST_FILE).unlink()
    error = refused("auto", run_dir)
    assert "latest is missing" in error.problem
    assert error.hint is not None and "step-8 beside it is whole" in error.hint


def test_a_first_save_that_was_cut_off_starts_a_run_anew_and_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-4"
    folder.mkdir(parents=True)
    (folder / CONTENT_FILE).write_bytes(b"half")
    resume = find("auto", tmp_path)
    assert resume.found is None
    assert len(resume.notices) == 1 and "step-4 was never finished" in resume.notices[0]
    assert refused(str(folder)).where == str(folder / CARD_FILE)


def test_a_step_folder_that_leads_out_is_refused_where_latest_names_it(run_dir: Path) -> None:
    folder = run_dir / "checkpoints" / "step-8"
    shutil.move(folder, run_dir / "step-8")
    folder.symlink_to(run_dir / "step-8")
    assert "is a link that leads out" in refused("auto", run_dir).problem


def test_a_newer_whole_checkpoint_that_latest_does_not_name_is_told(run_dir: Path) -> None:
    (run_dir / "checkpoints" / LATEST_FILE).write_text("step-4\n")
    resume = find("auto", run_dir)
    assert resume.found is not None and resume.found.folder.name == "step-4"
    assert len(resume.notices) == 1 and "step-8 is whole too" in resume.notices[0]


def test_a_checkpoint_under_the_name_of_another_step_is_refused(run_dir: Path) -> None:
    folder = run_dir / "checkpoints" / "step-8"
    shutil.rmtree(folder)
    (run_dir / "checkpoints" / "step-4").rename(folder)
    assert "is that of step 4" in refused("auto", run_dir).problem


def test_no_mutation_of_the_card_or_of_latest_is_resumed_from(run_dir: Path) -> None:
    """Any byte that changes what is said is found; latest may still name the older one, which is whole."""
    chance = random.Random(1)
    for name in (f"step-8/{CARD_FILE}", LATEST_FILE):
        file = run_dir / "checkpoints" / name
        good = file.read_bytes()
        for _ in range(120):
            bad = bytearray(good)
            for _ in range(chance.randint(1, 3)):
                start = chance.randint(0, len(bad))
                bad[start : start + chance.randint(0, 4)] = chance.randbytes(chance.randint(0, 4))
            file.write_bytes(bad)
            if bytes(bad) == good or (name == LATEST_FILE and bytes(bad).removesuffix(b"\n") in (b"step-4", b"step-8")):
                continue
            if name != LATEST_FILE and _says_the_same(bytes(bad), good):
                continue
            assert refused("auto", run_dir).where == str(file)
        file.write_bytes(good)


def _says_the_same(bad: bytes, good: bytes) -> bool:
    try:
        return bool(json.loads(bad) == json.loads(good))
    except ValueError:
        return False


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", "NaN", "1", '"content"', "[" * 5000, '{"content": {}}', "9" * 5000]
)
def test_what_is_no_card_is_told(run_dir: Path, text: str) -> None:
    card = run_dir / "checkpoints" / "step-8" / CARD_FILE
    card.write_text(text)
    assert refused("auto", run_dir).where == str(card)
