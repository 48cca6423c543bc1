from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_folders import make_cpu_run, make_gpu_run, make_monitor_run

from dist_trainer.cli.main import main
from dist_trainer.cli.report import run_names


def test_it_writes_both_pages_and_the_summary_and_prints_table_and_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_gpu_run(tmp_path / "run")
    assert main(["report", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert "Target met on both GPUs" in out.replace("\n", " ")
    assert out.splitlines()[-2:] == [str(run_dir / "report.html"), str(run_dir / "report.md")]
    assert json.loads((run_dir / "summary.json").read_text())["verdict"]["judgement"] == "met"
    assert {path.name for path in run_dir.iterdir()} == {
        "records",
        "resolved",
        "summary.json",
        "report.html",
        "report.md",
    }


@pytest.mark.parametrize(("peak", "status"), [(2_400_000_000, 0), (2_600_000_000, 3)])
def test_strict_has_a_status_of_its_own_for_a_missed_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], peak: int, status: int
) -> None:
    run_dir = make_gpu_run(tmp_path, (peak,))
    assert main(["report", str(run_dir), "--strict"]) == status
    err = capsys.readouterr().err
    assert err.startswith("dist_trainer: strict: Target missed: rank 0") if status else not err
    assert main(["report", str(run_dir)]) == 0


def test_strict_does_not_pass_what_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(make_cpu_run(tmp_path / "cpu")), "--strict"]) == 3
    assert "what is not known does not pass. On a CPU: there is no GPU to judge." in capsys.readouterr().err
    assert main(["report", str(make_gpu_run(tmp_path / "going", ends=False)), "--strict"]) == 3
    assert "has not come to its end" in capsys.readouterr().err


def test_a_baseline_run_is_compared_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = make_gpu_run(tmp_path / "before", (3_300_000_000,))
    run_dir = make_gpu_run(tmp_path / "after")
    assert main(["report", str(run_dir), "--baseline", str(before)]) == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["verdicts"][0]["reduction"] == pytest.approx(0.3)
    assert summary["verdicts"][0]["baseline_origin"] == f"measured in {before}"
    capsys.readouterr()
    assert main(["report", str(run_dir), "--baseline", str(make_cpu_run(tmp_path / "cpu"))]) == 2
    assert "the baseline's peak device memory was not measured" in capsys.readouterr().err


def test_what_is_no_runs_folder_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_gpu_run(tmp_path / "run")
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert main(["report", str(run_dir), "--compare", str(tmp_path)]) == 2
    assert main(["report"]) == 2
    err = capsys.readouterr().err
    assert err.count("dist_trainer: error: ") == 3 and "Traceback" not in err
    assert not (run_dir / "report.html").exists()


def test_runs_of_any_kind_are_compared_by_names_that_tell_them_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = make_gpu_run(tmp_path / "a" / "run"), make_cpu_run(tmp_path / "b" / "run")
    three = make_monitor_run(tmp_path / "watched")
    assert main(["report", str(one), "--compare", str(two), str(three)]) == 0
    assert "a/run | b/run | " in (one / "report.md").read_text()
    assert not (two / "report.html").exists()
    assert run_names([tmp_path / "x"]) == ["x"]
    assert run_names([tmp_path / "x", tmp_path / "x"]) == ["x", "x"]


def test_a_summary_is_not_written_for_a_run_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from run_folders import START_S

    from dist_trainer.report.reading import progress

    monkeypatch.setattr(progress.time, "time", lambda: START_S + 30)
    run_dir = make_gpu_run(tmp_path, ends=False)
    assert main(["report", str(run_dir)]) == 0
    assert (run_dir / "report.html").exists() and not (run_dir / "summary.json").exists()
