"""The folder of a benchmark: it goes on in one of the same settings, and in no other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dist_trainer.benchmark.worth.cells import matrix
from dist_trainer.benchmark.worth.folder import Folder, Settings, free_folder
from dist_trainer.benchmark.worth.measurement import Machine, Measurement
from dist_trainer.config.run import check, read
from dist_trainer.errors import UserError

SETTINGS = Settings("tiny", 2, 10, 3, 256, "torchrun", "cpu", "abc")
MEASURED = Measurement(
    "fused", 1, 2, 5.0, 9.5, None, 2048, (0.2,), (0.1, 0.1), (0.0, 0.0), 3.5, 7.2, 100, 99, None, Machine(1.0, 0.2)
)


def test_measurements_come_back_as_they_were(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.begin(SETTINGS, [])
    failed = replace(MEASURED, failure="out of memory", step_s=(), loss=None)
    folder.add(MEASURED)
    folder.add(failed)
    first, second = folder.measurements()
    assert replace(first, machine=MEASURED.machine) == MEASURED
    assert second.failure == "out of memory"


def test_a_line_that_a_crash_cut_off_is_none(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.begin(SETTINGS, [])
    folder.add(MEASURED)
    path = tmp_path / "measurements.jsonl"
    path.write_text(path.read_text() + '{"cell": "bf16", "rou')
    assert [one.cell for one in folder.measurements()] == ["fused"]
    folder.add(replace(MEASURED, cell="compile"))
    folder.add(replace(MEASURED, cell="bf16"))
    assert [one.cell for one in folder.measurements()] == ["fused", "compile", "bf16"]
    assert len(path.read_bytes().splitlines()) == 4


def test_the_cells_are_kept_as_files_that_can_be_run(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    cells = matrix("tiny", num_steps=10)
    folder.begin(SETTINGS, cells)
    for cell in cells:
        assert json.loads((folder.cell(cell.name) / "ds_config.json").read_text()) == cell.deepspeed
        path = folder.cell(cell.name) / "run.yaml"
        check(read(path), source=str(path))


def test_a_folder_of_other_settings_is_refused_with_the_first_that_differs(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.begin(SETTINGS, [])
    folder.begin(SETTINGS, [])
    with pytest.raises(UserError) as refused:
        folder.begin(replace(SETTINGS, num_ranks=4), [])
    assert (refused.value.key, refused.value.found, refused.value.expected) == ("num_ranks", 4, "2")
    assert "something else" in str(refused.value)


def test_a_name_that_is_taken_by_other_settings_gets_a_number(tmp_path: Path) -> None:
    Folder(tmp_path / "today").begin(SETTINGS, [])
    assert free_folder(tmp_path, "today", SETTINGS) == tmp_path / "today"
    assert free_folder(tmp_path, "today", replace(SETTINGS, code="other")) == tmp_path / "today-2"


def test_what_is_no_folder_of_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder of benchmark results"):
        Folder(tmp_path).settings()
