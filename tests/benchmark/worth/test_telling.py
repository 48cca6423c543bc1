"""The tables of what was measured so far."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dist_trainer.benchmark.worth import telling
from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.benchmark.worth.measuring import Bench, Wanted, prepare
from dist_trainer.benchmark.worth.results import read_results
from dist_trainer.benchmark.worth.telling import data_sheet, hardware_in_words, measure_rates, tell


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    def rate(dtype: str, **_: object) -> float | None:
        return None if dtype in ("fp16", "tf32") else 2e11

    monkeypatch.setattr(telling, "machine_flops_per_s", rate)
    made = prepare(Wanted("tiny", only=("bf16",), results=tmp_path), hardware="cpu")
    for cell in ("baseline", "bf16"):
        made.folder.add(
            Measurement(cell, 0, 0, 5.0, num_tokens=2048, warm_up_s=(0.2,), step_s=(0.1, 0.1), data_wait_s=(0.0, 0.0))
        )
    return made


def test_all_four_files_are_there_with_what_was_measured_so_far(bench: Bench) -> None:
    measure_rates(bench)
    paths = tell(bench)
    assert sorted(path.name for path in paths) == ["report.html", "report.md", "results.csv", "results.json"]
    results = read_results(bench.folder.path)
    rows = {row.cell: row for row in results.rows}
    assert rows["bf16"].tokens_per_s == pytest.approx(20480)
    assert rows["other-seeds"].judgement == "not measured"
    assert results.environment.rates.measured == {"fp32": 2e11, "bf16": 2e11, "bf32": 2e11}


def test_telling_measures_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "machine_flops_per_s", lambda *_, **__: pytest.fail("it measured"))
    tell(bench)
    assert read_results(bench.folder.path).environment.rates.measured == {}
    assert not (bench.folder.path / "rates.json").exists()


def test_a_rows_command_runs_the_cell_by_its_kept_files(bench: Bench) -> None:
    tell(bench)
    (row,) = [row for row in read_results(bench.folder.path).rows if row.cell == "bf16"]
    assert row.command.startswith("python -m dist_trainer launch ")
    assert str(bench.folder.cell("bf16") / "ds_config.json") in row.command


def test_the_rates_are_measured_once_a_folder(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_rates(bench)
    monkeypatch.setattr(telling, "machine_flops_per_s", lambda *_, **__: pytest.fail("it measured again"))
    measure_rates(bench)
    assert json.loads((bench.folder.path / "rates.json").read_text())["measured"]["fp32"] == 2e11


def test_data_sheets_are_of_gpus_that_are_known_and_of_all_ranks() -> None:
    assert data_sheet("NVIDIA A100-SXM4-80GB", 2)["bf16"] == pytest.approx(2 * 312e12)
    assert data_sheet("NVIDIA A100-SXM4-80GB", 2)["tf32"] == pytest.approx(2 * 156e12)
    assert "tf32" not in data_sheet("Tesla V100-SXM2-32GB", 2)
    assert data_sheet("cpu", 2) == {}
    assert data_sheet("NVIDIA Something New", 2) == {}


def test_a_cpu_is_named_with_its_cores() -> None:
    assert "cores" in hardware_in_words("cpu")
    assert hardware_in_words("NVIDIA A100-SXM4-80GB") == "NVIDIA A100-SXM4-80GB"
