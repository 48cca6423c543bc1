"""A run whose clock on the wall was set back in its middle is read as if it had not been."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_folders import event, make_gpu_run, sample, write_lines

from dist_trainer.records import samples_file
from dist_trainer.report import tables
from dist_trainer.report.charts.curves import memory_chart
from dist_trainer.report.reading.findings import read_findings
from dist_trainer.report.summary import summary_of

LOST = {"diagnostic": "gpu lost", "source": "rank-0", "unknown": ["used_bytes"]}


@pytest.mark.parametrize("is_lost", [False, True])
def test_peaks_phases_curves_and_what_is_not_known_are_the_same(tmp_path: Path, *, is_lost: bool) -> None:
    found = []
    for name, set_back_s in (("right", 0.0), ("back", 3600.0)):
        events = [event("monitor", "lost", 20.0, **LOST)] if is_lost else []
        run_dir = make_gpu_run(tmp_path / name, (2_000_000_000,), events=events)
        levels = [1_000_000_000, *[1_500_000_000] * 16, *[2_000_000_000] * 8]
        write_lines(
            run_dir / "records" / samples_file("rank-0"),
            [
                sample(
                    float(at),
                    None if is_lost and at >= 20 else used,
                    phase=None if at < 10 else "short context" if at < 17 else "full context",
                    is_last=at == 24,
                )
                for at, used in enumerate(levels)
            ],
        )
        for path in (run_dir / "records").glob("*.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            moments = [row.get("monotonic_s", row.get("facts", {}).get("monotonic_s", 0.0)) for row in rows]
            write_lines(
                path,
                [
                    {**row, "time_s": row["time_s"] - (set_back_s if at > 12 else 0.0)}
                    for row, at in zip(rows, moments, strict=True)
                ],
            )
        findings = read_findings(run_dir)
        summary = summary_of(findings)
        chart = memory_chart(findings, summary)
        verdict = summary.verdicts[0]
        reason = (verdict.reason or "").partition(" (")[2]
        found.append(
            (
                verdict.judgement,
                reason,
                verdict.peak_bytes,
                summary.state_text,
                tables.phase_table(findings, summary),
                [one.buckets for one in chart.series],
                list(chart.marks),
            )
        )
    assert found[0] == found[1]
    assert found[0][:2] == (("not judged", "gpu lost)") if is_lost else ("met", ""))
