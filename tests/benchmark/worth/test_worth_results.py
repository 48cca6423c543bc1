from __future__ import annotations

import csv
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from worth_runs import CELLS, results

from dist_trainer.benchmark.worth.contributions import Contribution, Contributions
from dist_trainer.benchmark.worth.ratios import Estimate
from dist_trainer.benchmark.worth.results import Environment, Results, csv_text, read_results, write_results
from dist_trainer.benchmark.worth.rows import MatmulRates, Row
from dist_trainer.errors import UserError

DOCS = Path(__file__).parents[3] / "docs" / "benchmark.md"


def test_results_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    made = results()
    assert write_results(made, tmp_path) == (tmp_path / "results.json", tmp_path / "results.csv")
    read = read_results(tmp_path)
    assert read.environment == made.environment
    assert list(read.rows) == list(made.rows)
    assert list(read.contributions.each) == list(made.contributions.each)
    assert (read.contributions.together, read.contributions.rest) == (
        made.contributions.together,
        made.contributions.rest,
    )


def test_what_is_not_known_is_null_and_a_cell_without_measurements_has_a_row(tmp_path: Path) -> None:
    write_results(results(num_rounds=0), tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["rows"]
    assert [row["cell"] for row in rows] == [cell.name for cell in CELLS]
    assert all(row["tokens_per_s"] is None and row["judgement"] == "not measured" for row in rows)


def test_the_csv_has_a_line_a_row_and_its_intervals_in_columns(tmp_path: Path) -> None:
    write_results(results(), tmp_path)
    lines = list(csv.DictReader((tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert [line["cell"] for line in lines] == [cell.name for cell in CELLS]
    bf16 = next(line for line in lines if line["cell"] == "bf16")
    assert float(bf16["ratio_low"]) < float(bf16["ratio"]) < float(bf16["ratio_high"])
    assert bf16["energy_j"] == "" and bf16["judgement"] == "faster"
    assert csv_text(results([])) == "\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"schema_version": 1}', "damaged"),
        ('{"schema_version": 2}', "another version"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=problem) as caught:
        read_results(tmp_path)
    assert str(tmp_path / "results.json") in str(caught.value)


def test_a_folder_without_results_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results") as caught:
        read_results(tmp_path / "nowhere")
    assert "nowhere" in str(caught.value)


@pytest.mark.parametrize("kind", [Results, Environment, MatmulRates, Row, Estimate, Contributions, Contribution])
def test_every_key_of_the_schema_is_documented(kind: type) -> None:
    schema = DOCS.read_text(encoding="utf-8").partition("## results.json")[2]
    documented = set(re.findall(r"`([a-z_0-9]+)`", schema))
    assert {field.name for field in fields(kind)} <= documented
