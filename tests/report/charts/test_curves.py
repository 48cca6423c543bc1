"""What the curves of a run are that was started more than once."""

from __future__ import annotations

import json
from pathlib import Path

from run_folders import GPU_BYTES, append, event, make_gpu_run, sample

from dist_trainer.records import samples_file
from dist_trainer.report.charts.curves import Compared, compare_charts, memory_chart
from dist_trainer.report.reading.findings import read_findings
from dist_trainer.report.summary import summary_of


def compared(run_dir: Path) -> Compared:
    findings = read_findings(run_dir)
    return Compared("run", findings, summary_of(findings))


def started_again(folder: Path, *at_s: float) -> Compared:
    """Two phases begin within the first session; each later session begins in the second phase."""
    again = [
        one
        for begin_s in at_s
        for one in (event("start", "again", begin_s), event("phase", "phase 2: full context", begin_s + 1, step=12))
    ]
    return compared(make_gpu_run(folder, events=again))


def test_a_run_that_was_started_once_has_its_phases_marked(tmp_path: Path) -> None:
    run = started_again(tmp_path)
    names = [mark.name for mark in memory_chart(run.findings, run.summary).marks]
    assert names == ["short context", "full context"]


def test_the_sessions_of_one_that_was_started_again_are_numbered(tmp_path: Path) -> None:
    run = started_again(tmp_path, 100.0, 900.0)
    marks = memory_chart(run.findings, run.summary).marks
    assert [mark.name for mark in marks] == [
        "session 1: short context",
        "full context",
        "session 2: full context",
        "session 3: full context",
    ]
    assert [round(mark.x) for mark in marks[2:]] == [100, 900]


def test_every_curve_over_time_is_cut_where_no_process_ran(tmp_path: Path) -> None:
    run = started_again(tmp_path, 100.0, 900.0)
    (memory, *_) = compare_charts([run, run])
    for series in (*memory_chart(run.findings, run.summary).series, *memory.series):
        assert [round(place) for place in series.breaks] == [100, 900]


def test_a_session_begins_with_its_first_sample_which_is_before_its_event(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    started_again(folder, 100.0)
    row = json.dumps(sample(97.0, GPU_BYTES // 2, start_id=959)) + "\n"
    append(folder / "records" / samples_file("rank-0"), row)
    run = compared(folder)
    chart = memory_chart(run.findings, run.summary)
    assert [round(mark.x) for mark in chart.marks if mark.name.startswith("session 2")] == [97]
    assert [round(place) for place in chart.series[0].breaks] == [97]
