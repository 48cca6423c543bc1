"""Whole training runs that are judged: their GPUs follow a script, and --strict's status arrives."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nvml_stub
import pytest
from ranks import BRISK, mini_config, run, run_ranks

from dist_trainer.cli.main import main
from dist_trainer.units import GB

pytestmark = pytest.mark.integration
SHORT = ("--max-steps", "2", "--set", "evaluation.num_batches=0", "--set", "memory.sample_every_s=0.02", *BRISK)


def arguments(folder: Path, name: str, *switches: str, target: str = "2.5 GB") -> list[str]:
    targets = json.dumps({"baseline_bytes": "4 GB", "target_bytes": target})
    files = ("--config", str(mini_config(folder)), "--run-dir", str(folder / name))
    return [*files, *SHORT, "--set", f"targets={targets}", *switches]


def test_a_missed_target_and_a_met_one_against_its_measured_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = nvml_stub.Script(clock="queries")
    for peak in (2 * GB, 3 * GB):
        gpu = script.gpu(used_bytes=GB)
        script.used(gpu, {6: peak, 8: GB})
    for name, value in nvml_stub.build(tmp_path / "driver").environ(script).items():
        monkeypatch.setenv(name, value)
    train = ["-m", "nvml_rank", "train"]

    ended = run_ranks([*train, *arguments(tmp_path, "missed", "--strict")], cwd=tmp_path, world_size=2)
    assert ended.status == 3, ended.output
    assert ended.output.count("dist_trainer: strict: ") == 1
    assert "strict: Target missed on 1 of 2 GPUs: rank 1 peaked at 3.00 GB, 0.50 GB over" in ended.output
    summary = json.loads((tmp_path / "missed" / "summary.json").read_text())
    assert [verdict["judgement"] for verdict in summary["verdicts"]] == ["met", "missed"]

    switches = ("--strict", "--baseline", str(tmp_path / "missed"))
    ended = run_ranks([*train, *arguments(tmp_path, "met", *switches, target="3 GB")], cwd=tmp_path, world_size=2)
    assert ended.status == 0, ended.output
    summary = json.loads((tmp_path / "met" / "summary.json").read_text())
    assert summary["verdict"]["judgement"] == "met"
    assert summary["verdicts"][0]["baseline_origin"] == f"measured in {tmp_path / 'missed'}"
    assert summary["verdicts"][0]["reduction"] == pytest.approx(1 / 3)

    assert main(["report", str(tmp_path / "met"), "--compare", str(tmp_path / "missed")]) == 0
    capsys.readouterr()
    page = (tmp_path / "met" / "report.html").read_text()
    assert "Target met on both GPUs: the fullest, rank 1, peaked at 3.00 GB of 3.00 GB" in page


def test_through_a_launcher_the_status_is_rank_0s_and_what_is_not_known_does_not_pass(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dist_trainer", "launch", "--launcher", "torchrun", "--nproc-per-node", "2"]
    ended = run([*command, *arguments(tmp_path, "run", "--strict")], cwd=tmp_path)
    assert ended.status == 3, ended.output
    said = "dist_trainer: strict: what is not known does not pass. Target met by plan: a GPU would need "
    assert ended.output.count(said) == 1


def test_a_baseline_that_cannot_be_compared_with_stops_the_run_before_it_begins(tmp_path: Path) -> None:
    arguments_of_run = arguments(tmp_path, "run", "--baseline", str(tmp_path / "nowhere"))
    ended = run([sys.executable, "-m", "dist_trainer", "train", *arguments_of_run], cwd=tmp_path)
    assert ended.status == 2, ended.output
    assert "no such folder" in ended.output and "Traceback" not in ended.output
    assert not (tmp_path / "run").exists()
