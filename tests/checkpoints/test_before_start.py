"""A launch and each rank find out before anything is built whether the run can go on from its checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_folders import checkpoint

from dist_trainer.checkpoints.before_start import check_before_start
from dist_trainer.checkpoints.changed import made_by
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve
from dist_trainer.errors import UserError

TINY = Request(config="tiny")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    made = made_by(resolve(TINY, world_size=2, device=ANY_DEVICE), world_size=2, data={})
    for step in (4, 8):
        checkpoint(tmp_path / "checkpoints", step, made_by=made)
    return tmp_path


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_run_goes_on_with_any_number_of_ranks(run_dir: Path, world_size: int) -> None:
    resumed, resolved = check_before_start(TINY, world_size=world_size, resume="auto", run_dir=run_dir)
    assert resumed.found is not None and resumed.found.index.position.step == 8
    assert resolved.run.name == "tiny"


def test_where_the_ranks_found_one_damaged_the_one_before_it_is_checked(run_dir: Path) -> None:
    damaged = {(run_dir / "checkpoints" / "step-8").resolve(): "is not as it was written"}
    resumed, _ = check_before_start(TINY, world_size=2, resume="auto", run_dir=run_dir, damaged=damaged)
    assert resumed.found is not None and resumed.found.index.position.step == 4
    assert len(resumed.notices) == 1


def test_another_kind_of_run_is_refused_but_may_start_anew(run_dir: Path) -> None:
    wider = Request(config="tiny", settings=("model.num_layers=3",))
    with pytest.raises(UserError) as caught:
        check_before_start(wider, world_size=2, resume="auto", run_dir=run_dir)
    assert caught.value.key == "model.num_layers"
    resumed, _ = check_before_start(wider, world_size=2, resume="never", run_dir=run_dir)
    assert resumed.found is None


def test_a_run_without_a_folder_starts_anew() -> None:
    assert check_before_start(TINY, world_size=2, resume="auto", run_dir=None)[0].found is None
