"""A benchmark from its first round to its last, with runs that are made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dist_trainer.benchmark.worth import measuring
from dist_trainer.benchmark.worth.folder import Folder, Settings
from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.benchmark.worth.measuring import Wanted, prepare, run
from dist_trainer.benchmark.worth.rounds import Turn
from dist_trainer.errors import UserError


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Turn]:
    """The turns that were taken; `fp16` fails, and the fourth turn is interrupted once."""
    found: list[Turn] = []

    def measure(folder: Folder, turn: Turn, settings: Settings) -> Measurement:
        found.append(turn)
        if len(found) == 4:
            raise KeyboardInterrupt
        made = Measurement(turn.cell, turn.round, turn.place, 0.0, took_s=2.0)
        return replace(made, failure="this CPU has no fp16") if turn.cell == "fp16" else made

    monkeypatch.setattr(measuring, "measure", measure)
    return found


def test_it_goes_on_where_it_was_stopped_and_measures_nothing_twice(tmp_path: Path, taken: list[Turn]) -> None:
    wanted = Wanted("tiny", only=("fp16", "fused"), num_rounds=2, results=tmp_path)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(prepare(wanted, hardware="cpu"), say=said.append)
    assert len(Folder(tmp_path).measurements()) == 3
    measured = run(prepare(wanted, hardware="cpu"), say=said.append)
    assert len({(one.cell, one.round) for one in measured}) == len(measured) == 9
    assert len(taken) == 10
    assert "           fp16 failed: this CPU has no fp16" in said
    assert said[0].startswith("round 1 of 2: ") and said[0].endswith("(10 left)")
    assert said[-1].endswith("(1 left, 2.0s to go)")


def test_the_baselines_are_measured_with_every_selection(tmp_path: Path) -> None:
    bench = prepare(Wanted("tiny", only=("zero1",), results=tmp_path), hardware="cpu")
    assert [cell.name for cell in bench.cells] == ["baseline", "baseline-again", "other-seeds", "zero1"]


def test_a_cell_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        prepare(Wanted("tiny", only=("fb16",), results=tmp_path), hardware="cpu")
    assert (refused.value.where, refused.value.found) == ("--only", "fb16")
    assert "bf16" in str(refused.value.expected)


def test_a_run_has_steps_after_its_warm_up(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few steps"):
        prepare(Wanted("tiny", num_steps=3, results=tmp_path), hardware="cpu")


def test_the_folder_is_named_by_day_model_and_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bench = prepare(Wanted("tiny", only=("bf16",)), hardware="NVIDIA A100-SXM4-80GB")
    assert bench.folder.path.parent == Path("benchmark_results")
    assert bench.folder.path.name.endswith("-tiny-nvidia-a100-sxm4-80gb")
