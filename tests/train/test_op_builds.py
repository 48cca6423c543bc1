"""A lock left behind by a killed build is deleted, for torch waits for it in silence; one in use is pointed at."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dist_trainer.train import op_builds


def test_every_lock_in_the_build_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert op_builds.notices() == []
    for folder in ("cpu_adam", "py311_cpu/fused_adam"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "lock").touch()
    said = op_builds.notices()
    assert [str(tmp_path / "cpu_adam" / "lock") in said[0], "fused_adam/lock" in said[1]] == [True, True]


def test_without_the_variable_it_is_a_folder_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    assert op_builds.build_folder({}).name == "torch_extensions"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_a_lock_that_nobody_holds_open_is_deleted(lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_builds, "shows_its_writers", lambda folder: True)
    with lock.open():
        op_builds.delete_abandoned_locks(tmp_path)
        assert lock.exists()
    op_builds.delete_abandoned_locks(tmp_path)
    assert not lock.exists()


def test_where_other_hosts_may_build_only_an_old_lock_is_deleted(
    lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op_builds, "shows_its_writers", lambda folder: False)
    op_builds.delete_abandoned_locks(tmp_path)
    assert lock.exists()
    long_ago_s = time.time() - 2 * op_builds.LONGEST_BUILD_S
    os.utime(lock, (long_ago_s, long_ago_s))
    op_builds.delete_abandoned_locks(tmp_path)
    assert not lock.exists()
