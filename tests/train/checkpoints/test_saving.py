"""Saves of a real engine that go wrong, by a copy, a write or a deletion of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from one_rank import MODEL, Trained, batches, build, one_rank

from dist_trainer.checkpoints import folder
from dist_trainer.checkpoints.index import Made
from dist_trainer.checkpoints.position import Position, Progress
from dist_trainer.train.checkpoints import saving
from dist_trainer.train.checkpoints.capture import Copy
from dist_trainer.train.checkpoints.holders import holders_of
from dist_trainer.train.checkpoints.saving import Kept, Outcome, Saver
from dist_trainer.train.step import train_step

pytestmark = pytest.mark.integration
POSITION = Position(8, {"only": Progress(8)})


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank():
        yield


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Any]:
    engine = build(Trained(), tmp_path)
    train_step(engine, batches(), step=1)
    yield engine
    engine.destroy()


def saver(engine: Any, tmp_path: Path, **kept: int) -> Saver:
    return Saver(engine, holders_of(engine, MODEL["vocab_size"]), tmp_path / "saves", Made(1, {}, {}, {}), Kept(**kept))


def saved(own: Saver) -> Outcome:
    own.begin(POSITION)
    own.before_update()
    outcome = own.finish()
    assert outcome is not None
    return outcome


def test_what_cannot_be_copied_is_told_and_holds_nobody_up(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = saver(engine, tmp_path)
    assert saved(own).problem is None

    def fail(self: Copy) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Copy, "take", fail)
    outcome = saved(own)
    assert outcome.folder is None
    assert outcome.problem == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert [path.name for path in folder.saves(tmp_path / "saves")] == ["step-8"]
    assert not (tmp_path / "saves" / ".step-8.saving").exists()


def test_an_older_checkpoint_that_cannot_be_deleted_does_not_make_the_new_one_fail(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied", "saves/step-4")

    monkeypatch.setattr(saving.folder, "prune", fail)
    outcome = saved(saver(engine, tmp_path, newest=1))
    assert outcome.folder == tmp_path / "saves" / "step-8" and outcome.problem is None
    assert outcome.not_deleted is not None and "Permission denied" in outcome.not_deleted


def test_what_lies_on_nvme_is_copied_before_the_steps_go_on(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holders = holders_of(engine, MODEL["vocab_size"])
    on_nvme = replace(holders, holders=tuple(replace(holder, is_on_nvme=True) for holder in holders.holders))
    own = Saver(engine, on_nvme, tmp_path / "saves", Made(1, {}, {}, {}), Kept())
    began = []
    monkeypatch.setattr(saving.threading, "Thread", lambda **named: began.append(own._copied.is_set()) or Idle())
    own.begin(POSITION)
    assert began == [True]


class Idle:
    def start(self) -> None:
        pass
