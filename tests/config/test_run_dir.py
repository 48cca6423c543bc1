from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dist_trainer.config.run_dir import create_next_run_dir, create_run_dir, next_run_dir
from dist_trainer.errors import UserError


def test_the_next_free_folder(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert next_run_dir("configs/tiny.yaml", "ds_configs/zero2.json", runs) == runs / "tiny-zero2-001"
    assert not runs.exists()
    assert create_next_run_dir("tiny", "zero2", runs) == runs / "tiny-zero2-001"
    assert create_next_run_dir("tiny", "zero2", runs) == runs / "tiny-zero2-002"
    assert create_next_run_dir("tiny", "zero3", runs) == runs / "tiny-zero3-001"


def test_launches_at_the_same_moment_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: create_next_run_dir("tiny", "zero2", tmp_path), range(32)))
    assert len(set(made)) == 32


def test_the_folder_that_a_user_names_is_used_as_it_is(tmp_path: Path) -> None:
    create_run_dir(tmp_path / "a" / "b")
    create_run_dir(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        create_run_dir(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be made"):
        create_next_run_dir("tiny", "zero2", tmp_path / "file")
