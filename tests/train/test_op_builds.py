"""A lock left behind by a killed build is pointed at, for DeepSpeed waits for it in silence."""

from __future__ import annotations

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
