"""The cells differ from the baseline in what they are named for, and in nothing that would make them incomparable."""

from __future__ import annotations

import pytest

from dist_trainer.benchmark.worth.cells import ALL, BASELINE, OPTIMISATIONS, PRESETS, ZERO, Cell, matrix
from dist_trainer.config.deepspeed.batch import ACCUMULATION, MICRO
from dist_trainer.config.run import check
from dist_trainer.errors import UserError


@pytest.fixture(scope="module")
def cells() -> dict[str, Cell]:
    return {cell.name: cell for cell in matrix("tiny", num_steps=10)}


def test_every_cell_trains_the_same_tokens_a_step_on_the_same_model_data_and_seed(cells: dict[str, Cell]) -> None:
    baseline = cells[BASELINE]
    for cell in cells.values():
        assert cell.deepspeed[MICRO] * cell.deepspeed[ACCUMULATION] == 4, cell.name
        assert cell.run["phases"] == baseline.run["phases"]
        assert cell.run["seed"] == baseline.run["seed"]
        assert {**cell.run["model"], "loss": "full", "pad_vocab": False} == baseline.run["model"]
        assert cell.run["data"]["source"] == baseline.run["data"]["source"]


def test_each_optimisation_is_on_alone_and_taken_away_from_all(cells: dict[str, Cell]) -> None:
    baseline, together = cells[BASELINE], cells[ALL]
    for one in OPTIMISATIONS:
        alone = cells[one.name]
        assert (alone.deepspeed, alone.run) != (baseline.deepspeed, baseline.run)
        assert one.change(dict(baseline.deepspeed), dict(baseline.run)) == (alone.deepspeed, alone.run)
        if one.in_all:
            without = cells[f"without-{one.name}"]
            assert (without.deepspeed, without.run) != (together.deepspeed, together.run)
            assert without.optimisation == one.name


def test_every_run_file_is_one_that_the_program_takes(cells: dict[str, Cell]) -> None:
    for cell in cells.values():
        check(cell.run, source=cell.name)


def test_presets_and_zero_files_are_there_as_they_are_shipped(cells: dict[str, Cell]) -> None:
    assert set(PRESETS) | set(ZERO) <= set(cells)
    assert cells["zero3"].deepspeed["zero_optimization"]["stage"] == 3
    assert all("scheduler" not in cell.deepspeed for cell in cells.values())


def test_a_model_size_that_is_no_shipped_run_file_is_refused() -> None:
    with pytest.raises(UserError) as refused:
        matrix("huge", num_steps=10)
    assert refused.value.where == "--model-size"
