from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.config.files import DEEPSPEED_FILE, PACKAGE_DIR, RUN_FILE, find_file, shipped_folder
from dist_trainer.errors import UserError

ROOT = Path(__file__).parents[2]


def find_ds(name: str) -> Path:
    return find_file(name, DEEPSPEED_FILE)


def find_config(name: str) -> Path:
    return find_file(name, RUN_FILE)


def refused(name: str) -> UserError:
    with pytest.raises(UserError) as caught:
        find_ds(name)
    return caught.value


def test_a_name_means_the_shipped_file() -> None:
    assert find_ds("zero2").samefile(ROOT / "ds_configs" / "zero2.json")
    assert find_config("tiny").samefile(ROOT / "configs" / "tiny.yaml")


def test_a_name_means_the_shipped_file_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zero2").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_ds("zero2").samefile(ROOT / "ds_configs" / "zero2.json")


def test_what_has_a_folder_or_a_suffix_is_a_path_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zero2.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_ds("zero2.json") == Path("zero2.json")
    assert find_ds("folder/mine") == Path("folder/mine")
    assert find_ds(str(tmp_path / "zero2.json")) == tmp_path / "zero2.json"


@pytest.mark.parametrize("name", ["zero2.json", "ds_configs/zero2.json", "/nowhere/zero2.json", "a/folder"])
def test_a_path_that_does_not_exist_names_the_switch_and_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "a" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    error = refused(name)
    assert (error.where, error.found) == ("--ds", name)
    assert error.hint == "check the path, or use a name without a suffix"


def test_a_name_that_does_not_exist_is_answered_with_the_nearest_and_all_names() -> None:
    error = refused("zreo2")
    assert (error.where, error.found, error.hint) == ("--ds", "zreo2", "did you mean 'zero2'?")
    assert error.expected is not None
    for path in (ROOT / "ds_configs").glob("*.json"):
        assert path.stem in error.expected


def test_a_name_like_no_other_is_answered_without_a_guess() -> None:
    assert refused("qqqq").hint is None


@pytest.mark.parametrize("name", ["tiny", "tiny.yaml", str(ROOT / "configs" / "tiny.yaml"), "nowhere/x.yml"])
def test_a_run_file_is_no_deepspeed_file_and_the_switch_that_takes_it_is_said(name: str) -> None:
    error = refused(name)
    assert error.problem == "this is a run file, and --ds takes a DeepSpeed file"
    assert (error.where, error.found, error.hint) == ("--ds", name, f"write --config {name}")


def test_the_name_of_a_deepspeed_file_is_no_run_files() -> None:
    with pytest.raises(UserError, match="this is a DeepSpeed file, and --config takes a run file") as caught:
        find_config("zero2")
    assert caught.value.hint == "write --ds zero2"


def test_a_run_file_in_json_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_config("mine.json") == Path("mine.json")
    with pytest.raises(UserError, match="this is a DeepSpeed file"):
        find_config("zero2.json")


def test_hjson_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.hjson").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_ds("mine.hjson") == Path("mine.hjson")


def test_an_installed_package_carries_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped_folder("configs") == PACKAGE_DIR.parent / "configs"
    package = tmp_path / "site-packages" / "dist_trainer"
    (package / "ds_configs").mkdir(parents=True)
    (package / "ds_configs" / "own.json").write_text("{}")
    (package.parent / "ds_configs").mkdir()
    monkeypatch.setattr("dist_trainer.config.files.PACKAGE_DIR", package)
    assert find_ds("own") == package / "ds_configs" / "own.json"
