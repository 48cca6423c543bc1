"""The cells of a sweep differ in ranks and accumulation, and in nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.benchmark.scaling.cells import cells, identity, shared_by_all
from dist_trainer.benchmark.scaling.points import num_sequences
from dist_trainer.benchmark.worth.cells import Cell
from dist_trainer.config.deepspeed.batch import ACCUMULATION, MICRO
from dist_trainer.config.run import check
from dist_trainer.errors import UserError


def sweep(*worlds: int, ds: str | None = None) -> dict[str, Cell]:
    return {cell.name: cell for cell in cells("tiny", worlds, ds=ds, num_steps=8)}


def written(folder: Path, **values: Any) -> str:
    path = folder / "ds.json"
    path.write_text(json.dumps(values))
    return str(path)


def test_strong_scaling_keeps_the_batch_of_all_ranks_and_weak_that_of_each() -> None:
    found = sweep(1, 2, 4, ds="zero2")
    assert list(found) == ["world-1", "strong-2", "strong-4", "weak-2", "weak-4"]
    assert [found[name].num_ranks for name in found] == [1, 2, 4, 2, 4]
    base = num_sequences(found["world-1"])
    assert num_sequences(found["strong-2"]) == num_sequences(found["strong-4"]) == base
    assert (num_sequences(found["weak-2"]), num_sequences(found["weak-4"])) == (2 * base, 4 * base)


def test_only_ranks_and_accumulation_differ() -> None:
    found = sweep(1, 2, 4, ds="zero1")
    base = found["world-1"]
    for cell in found.values():
        assert {**cell.deepspeed, ACCUMULATION: 0} == {**base.deepspeed, ACCUMULATION: 0}
        assert cell.run == base.run
        assert "scheduler" not in cell.deepspeed
        check(dict(cell.run), source=cell.name)


def test_the_smallest_world_has_the_jsons_own_batch(tmp_path: Path) -> None:
    assert sweep(1, 2, ds="zero1")["world-1"].deepspeed[ACCUMULATION] == 8
    by_total = written(tmp_path, train_batch_size=12, train_micro_batch_size_per_gpu=3)
    base = sweep(2, 4, ds=by_total)["world-2"]
    assert (base.deepspeed[MICRO], base.deepspeed[ACCUMULATION]) == (3, 2)
    assert "train_batch_size" not in base.deepspeed


def test_a_batch_that_some_world_does_not_divide_is_rounded_up() -> None:
    assert [shared_by_all(8, worlds) for worlds in ((1, 2, 4), (1, 2, 3), (1, 16))] == [8, 12, 16]
    assert {num_sequences(cell) for cell in sweep(1, 3, ds="zero1").values()} == {9, 27}


def test_the_run_files_json_is_the_default() -> None:
    base = sweep(1, 2)["world-1"]
    assert base.deepspeed == sweep(1, 2, ds="zero2")["world-1"].deepspeed
    assert identity(base, None) == identity(base, "zero2") != identity(sweep(1, 2, ds="zero1")["world-1"], "zero2")


def test_a_json_of_the_same_name_with_other_contents_is_another_one(tmp_path: Path) -> None:
    before = identity(sweep(1, 2, ds=written(tmp_path, train_micro_batch_size_per_gpu=1))["world-1"], "ds.json")
    after = identity(sweep(1, 2, ds=written(tmp_path, train_micro_batch_size_per_gpu=2))["world-1"], "ds.json")
    assert before.startswith("ds.json ") and before != after


def test_a_wrong_json_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown key"):
        sweep(1, 2, ds=written(tmp_path, train_batchsize=1))
    with pytest.raises(UserError, match="no ds_configs file of this name"):
        sweep(1, 2, ds="zero9")
