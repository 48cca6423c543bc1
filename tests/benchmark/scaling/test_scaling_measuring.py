"""A sweep's folder, and what it launches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dist_trainer.benchmark.scaling.measuring import prepare
from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.benchmark.worth.measuring import Bench, Wanted
from dist_trainer.benchmark.worth.measuring import prepare as prepare_worth
from dist_trainer.benchmark.worth.rounds import Turn, turns
from dist_trainer.benchmark.worth.running import measure
from dist_trainer.benchmark.worth.telling import commands
from dist_trainer.errors import UserError


def sweep(folder: Path | None, *worlds: int, ds: str | None = None, num_gpus: int = 0) -> Bench:
    wanted = Wanted("tiny", num_steps=4, sequence_length=32, results=folder)
    return prepare(wanted, worlds or (1, 2), ds=ds, hardware="cpu", num_gpus=num_gpus)


def test_the_folder_is_named_by_day_model_hardware_and_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sweep(None).folder.path.name.endswith("-tiny-cpu-scaling")
    assert sweep(None, 1, 4).folder.path.name.endswith("-tiny-cpu-scaling-2")


def test_each_cell_is_launched_with_its_own_ranks(tmp_path: Path) -> None:
    found = commands(sweep(tmp_path, 1, 2, 4))
    ranks = {name: words.split("--nproc-per-node ")[1].split()[0] for name, words in found.items()}
    assert ranks == {"world-1": "1", "strong-2": "2", "strong-4": "4", "weak-2": "2", "weak-4": "4"}


def test_a_folder_is_of_one_sweep_and_one_json(tmp_path: Path) -> None:
    sweep(tmp_path, 1, 2)
    sweep(tmp_path, 1, 2, ds="zero2")
    for worlds, ds, key in (((2, 4), None, "sweep"), ((1, 2), "zero1", "deepspeed")):
        with pytest.raises(UserError, match="something else") as refused:
            sweep(tmp_path, *worlds, ds=ds)
        assert refused.value.key == key
    with pytest.raises(UserError, match="something else"):
        prepare_worth(Wanted("tiny", num_steps=4, sequence_length=32, results=tmp_path), hardware="cpu")


def test_more_ranks_than_gpus_and_too_few_steps_are_refused_before_the_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="need 4 GPUs"):
        sweep(tmp_path / "new", 1, 4, num_gpus=2)
    with pytest.raises(UserError, match="too few steps"):
        prepare(Wanted("tiny", num_steps=3, results=tmp_path / "new"), (1, 2), ds=None, hardware="cpu", num_gpus=0)
    assert not (tmp_path / "new").exists()


def test_every_second_round_has_the_reverse_order(tmp_path: Path) -> None:
    names = [cell.name for cell in sweep(tmp_path, 1, 2, 4).cells]
    order = [turn.cell for turn in turns(names, 2)]
    assert order[:5] == order[:4:-1] and sorted(order[:5]) == sorted(names)


@pytest.mark.integration
def test_strong_scaling_trains_the_same_batches_on_more_ranks_to_the_same_loss(tmp_path: Path) -> None:
    bench = sweep(tmp_path, 2, 4)
    bench.folder.begin(
        bench.settings,
        [
            replace(cell, run={**cell.run, "model": {**cell.run["model"], "num_layers": 2, "vocab_size": 512}})
            for cell in bench.cells
        ],
    )

    def measured(name: str) -> Measurement:
        return measure(bench.folder, Turn(name, 0, 0), bench.settings_of(name))

    few, many = measured("world-2"), measured("strong-4")
    assert few.failure is None and many.failure is None
    assert few.num_tokens == many.num_tokens == 16 * 32
    assert few.loss is not None and many.loss == pytest.approx(few.loss, rel=1e-3)
    assert few.peak_bytes is not None and many.peak_bytes is not None and many.peak_bytes < few.peak_bytes
