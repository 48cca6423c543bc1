"""The files of a sweep's results."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from scaling_runs import results

from dist_trainer.benchmark.scaling.points import Point
from dist_trainer.benchmark.scaling.results import Environment, Results, write_results
from dist_trainer.benchmark.worth.results import read_results
from dist_trainer.errors import UserError

DOCS = Path(__file__).parents[3] / "docs" / "benchmark.md"


def test_json_and_csv_have_every_point(tmp_path: Path) -> None:
    write_results(results(), tmp_path)
    read = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert (read["schema_version"], read["kind"]) == (1, "scaling")
    lines = list(csv.DictReader((tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()))
    for point, line in zip(read["points"], lines, strict=True):
        assert (point["mode"], str(point["num_ranks"])) == (line["mode"], line["num_ranks"])
    assert lines[0]["speed_up"] == lines[0]["speed_up_low"] == "" and read["points"][0]["speed_up"] is None
    assert float(lines[1]["speed_up_low"]) <= float(lines[1]["speed_up"]) <= float(lines[1]["speed_up_high"])


def test_they_are_not_compared_as_if_they_were_of_optimisations(tmp_path: Path) -> None:
    write_results(results(), tmp_path)
    with pytest.raises(UserError, match="not of optimisations") as refused:
        read_results(tmp_path)
    assert (refused.value.key, refused.value.found) == ("kind", "scaling")


@pytest.mark.parametrize("kind", [Results, Environment, Point])
def test_every_key_of_the_schema_is_documented(kind: type) -> None:
    schema = DOCS.read_text(encoding="utf-8").partition("## A sweep's results.json")[2]
    documented = set(re.findall(r"`([a-z_0-9]+)`", schema))
    assert {field.name for field in fields(kind)} <= documented
