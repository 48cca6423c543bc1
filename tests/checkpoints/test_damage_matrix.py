"""The short form of damage.py: real starts from checkpoints that are damaged in ways that only a whole start finds."""

from __future__ import annotations

from pathlib import Path

import damage
import pytest
from damage import ALONE, AUTO, NAMED, Runs, all_damages, make_runs, start

from dist_trainer.checkpoints.folder import LATEST_FILE
from dist_trainer.checkpoints.index import INDEX_FILE

FIRST, SECOND = damage.DATA_FILES


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("file", "what", "way"),
    [
        (SECOND, "of another run", AUTO),
        (FIRST, "of another step", NAMED),
        (INDEX_FILE, "of another run", ALONE),
        (INDEX_FILE, "its place edited", AUTO),
        (LATEST_FILE, "a bit flipped", AUTO),
    ],
)
def test_no_start_trains_on_as_if_it_were_whole(file: str, what: str, way: str, runs: Runs, tmp_path: Path) -> None:
    (one,) = (one for one in all_damages() if (one.file, one.what) == (file, what))
    assert start(one, way, runs, tmp_path).wrong == ()


def test_each_file_is_damaged_in_each_way() -> None:
    tried = {(one.file, one.what) for one in all_damages()}
    assert len(tried) == len(all_damages())
    for what in ("deleted", "cut", "a bit flipped", "of another run", "of another step"):
        assert {file for file, done in tried if done == what} == {*damage.DATA_FILES, INDEX_FILE, LATEST_FILE}
    assert {f"its {name} edited" for name in ("step", "phase", "place")} <= {what for _, what in tried}
