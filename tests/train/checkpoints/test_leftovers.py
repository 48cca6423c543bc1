"""What a killed save leaves is cleared by the next start, which says so, and from which checkpoint it goes on."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from ranks import Ended, mini_config, run_ranks

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.folder import LATEST_FILE, saves
from dist_trainer.checkpoints.verify import damages
from dist_trainer.records import read_steps

pytestmark = pytest.mark.integration

KILLED = str(Path(__file__).with_name("killed_rank.py"))
CUT_OFF = "the save of step-4 was cut off, and is removed: run/checkpoints/.step-4.saving"


def started(folder: Path, *program: str, max_steps: int) -> Ended:
    words = ["train", "--config", str(mini_config(folder)), "--run-dir", "run", "--max-steps", str(max_steps)]
    words += ["--set", "checkpoints.every_steps=2", "--set", "checkpoints.keep_newest=2"]
    return run_ranks([*program, *words], cwd=folder, world_size=1)


def assert_whole(run_dir: Path, names: list[str], *, latest: str) -> None:
    checkpoints = run_dir / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == sorted([*names, LATEST_FILE])
    assert (checkpoints / LATEST_FILE).read_text() == latest
    for folder in saves(checkpoints):
        assert not list(damages(folder, index.read(folder)))


@pytest.mark.parametrize(
    ("where", "left", "said"),
    [
        ("data", ".step-4.saving", CUT_OFF),
        ("index", ".step-4.saving", CUT_OFF),
        ("latest", "step-4", "names step-2, though step-4 is whole too: step-2 is resumed from"),
    ],
    ids=["data", "index", "latest"],
)
def test_the_next_start_clears_them_and_goes_on(tmp_path: Path, where: str, left: str, said: str) -> None:
    ended = started(tmp_path, KILLED, "4", where, max_steps=8)
    assert ended.status == -signal.SIGKILL, ended.output
    run_dir = tmp_path / "run"
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == sorted([left, LATEST_FILE, "step-2"])
    ended = started(tmp_path, "-m", "dist_trainer", max_steps=6)
    assert ended.status == 0, ended.output
    assert said in ended.output and "at step 2" in ended.output
    assert_whole(run_dir, ["step-4", "step-6"], latest="step-6")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    ended = started(folder, "-m", "dist_trainer", max_steps=4)
    assert ended.status == 0, ended.output
    return folder


@pytest.mark.parametrize("latest", ["../../secret/step-2", "st"], ids=["outside", "half"])
def test_a_latest_that_names_none_is_told_and_set_right_by_the_next_save(
    made: Path, tmp_path: Path, latest: str
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(made / "run", run_dir)
    (run_dir / "checkpoints" / LATEST_FILE).write_text(latest)
    ended = started(tmp_path, "-m", "dist_trainer", max_steps=6)
    assert ended.status == 0, ended.output
    assert "run/checkpoints/latest does not name a checkpoint" in ended.output
    assert "step-4, the newest that is whole, is resumed from" in ended.output
    assert [step.step for step in read_steps(run_dir / "records")] == [1, 2, 3, 4, 5, 6]
    assert_whole(run_dir, ["step-4", "step-6"], latest="step-6")
