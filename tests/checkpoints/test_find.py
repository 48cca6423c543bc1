"""Which checkpoint `--resume` means; one that is not whole is never taken, and for that no run starts anew."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_folders import CONTENT_FILE, checkpoint, content_of, position, write_content

from dist_trainer.checkpoints.find import Resume, cannot_be_loaded, find
from dist_trainer.checkpoints.folder import LATEST_FILE, begin
from dist_trainer.checkpoints.index import INDEX_FILE
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


def step_in(resume: Resume) -> str:
    assert resume.found is not None
    return resume.found.folder.name


def test_auto_is_the_newest_of_the_runs_folder(run_dir: Path) -> None:
    resume = find("auto", run_dir)
    assert resume.found is not None
    assert resume.found.folder == run_dir / "checkpoints" / "step-8"
    assert resume.found.index.position == position(8)
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
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    (tmp_path / "checkpoints").symlink_to("nowhere")
    for path in (tmp_path, tmp_path / "loop", tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        assert refused(str(path)).problem in ("no checkpoint to resume from", "a checkpoint cannot be read")


def test_how_much_of_each_phase_is_done_is_that_of_the_checkpoint(run_dir: Path) -> None:
    assert find("auto", run_dir).phases == position(8).phases
    assert find("never", run_dir).phases == {}


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def linked_out(path: Path) -> None:
    outside = path.parents[2] / f"{path.parent.name}-{path.name}"
    path.rename(outside)
    path.symlink_to(outside)


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = pytest.mark.parametrize("damage", [Path.unlink, truncated, emptied, linked_out, as_fifo])
FILES = pytest.mark.parametrize("name", [INDEX_FILE, CONTENT_FILE, "rank-00001.safetensors"])


@FILES
@DAMAGES
@pytest.mark.parametrize("resume", ["auto", "run", "checkpoints"])
def test_where_the_newest_is_damaged_the_newest_whole_one_is_taken_and_told(
    run_dir: Path, name: str, damage: Callable[[Path], None], resume: str
) -> None:
    checkpoint(run_dir / "checkpoints", 12)
    damaged = run_dir / "checkpoints" / "step-12" / name
    damage(damaged)
    asked = {"auto": "auto", "run": str(run_dir), "checkpoints": str(run_dir / "checkpoints")}[resume]
    found = find(asked, run_dir)
    assert step_in(found) == "step-8"
    (notice,) = found.notices
    assert notice.startswith(str(damaged)) and notice.endswith("step-8, the newest that is whole, is resumed from")


@FILES
@DAMAGES
def test_a_damaged_one_that_was_named_is_refused_with_one_that_is_whole(
    run_dir: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = run_dir / "checkpoints" / "step-8"
    damage(folder / name)
    error = refused(str(folder), run_dir)
    assert error.where == str(folder / name)
    assert name in error.problem
    assert error.hint is not None and f"--resume {folder.parent / 'step-4'}" in error.hint


def test_a_copy_elsewhere_that_is_damaged_is_refused(run_dir: Path, tmp_path: Path) -> None:
    # The folder above has a checkpoint's name, but is none.
    copy = tmp_path / "step-1" / "best"
    shutil.copytree(run_dir / "checkpoints" / "step-4", copy)
    (copy / CONTENT_FILE).unlink()
    error = refused(str(copy))
    assert error.where == str(copy / CONTENT_FILE)
    assert error.hint is not None and "no other checkpoint beside it is whole" in error.hint


@FILES
@DAMAGES
@pytest.mark.parametrize("resume", ["auto", "run", "step"])
def test_where_none_is_whole_the_run_is_refused_and_not_started_anew(
    run_dir: Path, name: str, damage: Callable[[Path], None], resume: str
) -> None:
    for step in (4, 8):
        damage(run_dir / "checkpoints" / f"step-{step}" / name)
    asked = {"auto": "auto", "run": str(run_dir), "step": str(run_dir / "checkpoints" / "step-8")}[resume]
    error = refused(asked, run_dir)
    assert error.where == str(run_dir / "checkpoints" / "step-8" / name)
    assert error.hint is not None and "no other checkpoint beside it is whole" in error.hint


@pytest.mark.parametrize("latest", [None, "", "step-99", "step-8"])
def test_without_a_whole_one_no_latest_starts_a_run_anew(run_dir: Path, latest: str | None) -> None:
    for step in (4, 8):
        (run_dir / "checkpoints" / f"step-{step}" / INDEX_FILE).unlink()
    file = run_dir / "checkpoints" / LATEST_FILE
    file.unlink() if latest is None else file.write_text(latest)
    refused("auto", run_dir)
    refused(str(run_dir), run_dir)


def test_a_latest_without_any_checkpoint_does_not_start_a_run_anew(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / LATEST_FILE).write_text("step-8")
    assert "names step-8, which is not there" in refused("auto", tmp_path).problem


def test_checkpoints_that_are_links_elsewhere_do_not_start_a_run_anew(run_dir: Path, tmp_path: Path) -> None:
    elsewhere = checkpoint(tmp_path / "elsewhere", 8)
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "step-8").symlink_to(elsewhere)
    assert "latest is missing" in refused("auto", run_dir).problem


def test_a_save_that_was_cut_off_is_no_checkpoint(tmp_path: Path) -> None:
    (begin(tmp_path / "checkpoints", 4) / CONTENT_FILE).write_bytes(b"half")
    assert find("auto", tmp_path) == Resume()
    checkpoint(tmp_path / "checkpoints", 8)
    (begin(tmp_path / "checkpoints", 12) / CONTENT_FILE).write_bytes(b"half")
    found = find("auto", tmp_path)
    assert (step_in(found), found.notices) == ("step-8", ())


def test_one_rank_looks_at_the_files_for_all(run_dir: Path) -> None:
    (run_dir / "checkpoints" / "step-8" / CONTENT_FILE).unlink()
    assert step_in(find("auto", run_dir, with_files=False)) == "step-8"


def test_one_whose_bytes_were_found_damaged_is_not_taken(run_dir: Path) -> None:
    damaged = {(run_dir / "checkpoints" / "step-8").resolve(): "rank-00000.safetensors is not as it was written"}
    for resume in ("auto", str(run_dir)):
        for with_files in (True, False):
            found = find(resume, run_dir, with_files=with_files, damaged=damaged)
            assert step_in(found) == "step-4"
            (notice,) = found.notices
            assert "step-8 is not whole: rank-00000.safetensors is not as it was written" in notice
    with pytest.raises(UserError) as caught:
        find(str(run_dir / "checkpoints" / "step-8"), None, damaged=damaged)
    assert "rank-00000.safetensors" in caught.value.problem
    assert caught.value.hint is not None and "step-4 beside it is whole" in caught.value.hint


def test_a_damaged_one_is_known_by_any_path_to_it(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(run_dir)
    damaged = {(run_dir / "checkpoints" / "step-8").resolve(): "is not as it was written"}
    assert step_in(find("auto", tmp_path / "linked", damaged=damaged)) == "step-4"


def test_where_all_were_found_damaged_the_run_is_refused(run_dir: Path) -> None:
    damaged = {(run_dir / "checkpoints" / f"step-{step}").resolve(): f"no {step}" for step in (4, 8)}
    with pytest.raises(UserError) as caught:
        find("auto", run_dir, damaged=damaged)
    assert "no 8" in caught.value.problem
    assert caught.value.hint is not None and "no other" in caught.value.hint


def test_one_that_cannot_be_loaded_is_told_with_one_that_is_whole(run_dir: Path) -> None:
    folder = run_dir / "checkpoints" / "step-8"
    error = cannot_be_loaded(folder, "cannot be loaded: why")
    assert "step-8 cannot be loaded: why" in error.problem and error.where == str(folder)
    assert error.hint is not None and f"--resume {folder.parent / 'step-4'}" in error.hint


@pytest.mark.parametrize(
    "text",
    ["", "\0", "step-99", "../step-8", "step-8/../step-4", "/tmp", "step-08", "step--1", "step-8 ", "s" * 99, "latest"],
)
def test_a_latest_that_names_no_checkpoint_beside_it_is_told_and_the_newest_whole_one_taken(
    run_dir: Path, text: str
) -> None:
    latest = run_dir / "checkpoints" / LATEST_FILE
    latest.write_text(text)
    for resume in ("auto", str(run_dir)):
        found = find(resume, run_dir)
        assert step_in(found) == "step-8"
        (notice,) = found.notices
        assert notice.startswith(str(latest)) and notice.isprintable()


@pytest.mark.parametrize("damage", [Path.unlink, emptied, linked_out, as_fifo])
def test_a_latest_that_is_no_file_of_the_folder_is_told(run_dir: Path, damage: Callable[[Path], None]) -> None:
    latest = run_dir / "checkpoints" / LATEST_FILE
    damage(latest)
    found = find("auto", run_dir)
    assert step_in(found) == "step-8"
    assert len(found.notices) == 1 and found.notices[0].startswith(str(latest))


def test_a_latest_that_is_not_text_is_told(run_dir: Path) -> None:
    (run_dir / "checkpoints" / LATEST_FILE).write_bytes(b"step-\xff")
    assert "does not name a checkpoint" in find("auto", run_dir).notices[0]


def test_a_latest_may_end_its_line(run_dir: Path) -> None:
    (run_dir / "checkpoints" / LATEST_FILE).write_text("step-8\n")
    assert find("auto", run_dir).notices == ()


def test_a_step_folder_that_leads_out_is_not_taken(run_dir: Path) -> None:
    folder = run_dir / "checkpoints" / "step-8"
    shutil.move(folder, run_dir / "step-8")
    folder.symlink_to(run_dir / "step-8")
    found = find("auto", run_dir)
    assert step_in(found) == "step-4" and "is a link that leads out" in found.notices[0]


def test_a_link_within_the_folder_is_taken_where_latest_names_it(run_dir: Path) -> None:
    folder = run_dir / "checkpoints" / "step-8"
    folder.rename(folder.parent / "kept")
    folder.symlink_to("kept")
    assert (step_in(find("auto", run_dir)), find("auto", run_dir).notices) == ("step-8", ())
    # Also where it is the only one.
    shutil.rmtree(folder.parent / "step-4")
    assert step_in(find("auto", run_dir)) == "step-8"


def test_a_newer_whole_checkpoint_that_latest_does_not_name_is_told(run_dir: Path) -> None:
    (checkpoint(run_dir / "checkpoints", 12) / CONTENT_FILE).unlink()
    (run_dir / "checkpoints" / LATEST_FILE).write_text("step-4\n")
    found = find("auto", run_dir)
    assert step_in(found) == "step-4"
    assert len(found.notices) == 1 and "step-8 is whole too" in found.notices[0]


def test_a_checkpoint_under_the_name_of_another_step_is_not_taken(run_dir: Path) -> None:
    folder = run_dir / "checkpoints" / "step-8"
    shutil.rmtree(folder)
    shutil.copytree(run_dir / "checkpoints" / "step-4", folder)
    found = find("auto", run_dir)
    assert step_in(found) == "step-4" and "is that of step 4" in found.notices[0]
    assert "is that of step 4" in refused(str(folder)).problem


def test_no_mutation_of_the_index_or_of_latest_is_resumed_from(run_dir: Path) -> None:
    """Any byte that changes what is said is found; latest may still name the older one, which is whole."""
    chance = random.Random(1)
    for name, expected in ((f"step-8/{INDEX_FILE}", "step-4"), (LATEST_FILE, "step-8")):
        file = run_dir / "checkpoints" / name
        good = file.read_bytes()
        for _ in range(120):
            bad = bytearray(good)
            for _ in range(chance.randint(1, 3)):
                start = chance.randint(0, len(bad))
                bad[start : start + chance.randint(0, 4)] = chance.randbytes(chance.randint(0, 4))
            if bytes(bad) == good or bytes(bad).removesuffix(b"\n") in (b"step-4", b"step-8"):
                continue
            file.write_bytes(bad)
            found = find("auto", run_dir)
            assert step_in(found) == expected
            assert len(found.notices) == 1 and found.notices[0].startswith(str(file))
        file.write_bytes(good)


def test_what_a_strangers_index_says_is_told_in_a_short_line_without_commands(run_dir: Path) -> None:
    folder = run_dir / "checkpoints" / "step-8"
    content = content_of(folder)
    content["parameters"] = {"\x1b[2J\n" + "x" * 100_000: {"shape": [], "states": {}}}
    write_content(folder, json.dumps(content).encode())
    (notice,) = find("auto", run_dir).notices
    assert len(notice) < 2000 and "\x1b" not in notice
