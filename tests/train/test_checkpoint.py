"""Which checkpoint `--resume` means, and what refuses to be loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ranks import mini_config, run_ranks, train

from dist_trainer.errors import UserError
from dist_trainer.train.checkpoint import CARD_FILE, LATEST_FILE, Position, find


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for step in (5, 10):
        folder = tmp_path / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / CARD_FILE).write_text("{}")
    (tmp_path / "checkpoints" / LATEST_FILE).write_text("step-10")
    return tmp_path


def test_auto_is_the_newest_of_the_runs_folder(run_dir: Path) -> None:
    assert find("auto", run_dir / "checkpoints") == run_dir / "checkpoints" / "step-10"


def test_auto_without_checkpoints_starts_anew(tmp_path: Path) -> None:
    assert find("auto", tmp_path / "checkpoints") is None


def test_never_starts_anew(run_dir: Path) -> None:
    assert find("never", run_dir / "checkpoints") is None


@pytest.mark.parametrize(
    ("path", "step"), [("", "step-10"), ("checkpoints", "step-10"), ("checkpoints/step-5", "step-5")]
)
def test_a_path_is_a_run_its_checkpoints_or_one_of_them(run_dir: Path, path: str, step: str, tmp_path: Path) -> None:
    assert find(str(run_dir / path), tmp_path / "other") == run_dir / "checkpoints" / step


def test_a_path_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        find(str(tmp_path), tmp_path / "other")


def test_a_step_counts_in_its_phase_and_in_all() -> None:
    position = Position().after_step("a").after_step("a").after_step("b")
    assert (position.step, position.steps_in("a"), position.steps_in("b"), position.steps_in("c")) == (3, 2, 1, 0)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("--set", "model.num_layers=3"), "model.num_layers"),
        (("--set", "zero_optimization.stage=3"), "zero_stage"),
        (("--precision", "fp32"), "precision"),
    ],
)
def test_another_kind_of_run_is_refused_with_what_differs(
    change: tuple[str, ...], key: str, tmp_path_factory: pytest.TempPathFactory, made: Path
) -> None:
    folder = made.parent
    words = ["--config", str(mini_config(folder)), "--resume", str(made), *change]
    run_dir = str(tmp_path_factory.mktemp("other"))
    ended = run_ranks(["-m", "dist_trainer", "train", *words, "--run-dir", run_dir], cwd=folder, world_size=1)
    assert ended.status == 2, ended.output
    assert "was made by another kind of run" in ended.output
    assert re.search(rf"this run: {re.escape(key)}$", ended.output, re.MULTILINE)
    assert "Traceback" not in ended.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return train(folder, "run", "--max-steps", "2", "--set", "checkpoints.every_steps=1", world_size=1)
