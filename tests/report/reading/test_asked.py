from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import run_folders

from dist_trainer.report.reading.asked import Asked, read_asked
from dist_trainer.report.reading.findings import read_findings
from dist_trainer.report.summary import summary_of


def asked_with(folder: Path, **settings: Any) -> Asked:
    run_dir = run_folders.make_gpu_run(folder / "run", (2_000_000_000,))
    path = run_dir / "resolved" / "ds_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return read_asked(run_dir, [])


@pytest.mark.parametrize("block", ["zero_optimization", None])
def test_an_auto_that_nobody_filled_makes_no_resolved_file(block: str | None, tmp_path: Path) -> None:
    settings = {"gradient_clipping": "auto"} if block is None else {block: {"stage": 2, "reduce_bucket_size": "auto"}}
    asked = asked_with(tmp_path, **settings)
    assert asked.deepspeed is None
    (problem,) = asked.problems
    assert "this is no resolved configuration" in problem
    assert next(iter(settings)) in problem


def test_what_is_no_text_anywhere_can_be_shown(tmp_path: Path) -> None:
    asked = asked_with(tmp_path, **{"\ud800": 1})
    assert asked.problems
    "".join(asked.problems).encode()


def test_a_record_without_a_device_is_of_a_cpu(tmp_path: Path) -> None:
    run_dir = run_folders.make_gpu_run(tmp_path / "run", (2_000_000_000,))
    for path in (run_dir / "records").glob("memory-*"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**line, "device": None}) + "\n" for line in lines))
    summary = summary_of(read_findings(run_dir, now_s=run_folders.START_S + 100))
    assert {verdict.device for verdict in summary.verdicts} == {"cpu"}
