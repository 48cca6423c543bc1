"""Runs of so many ranks that each host has a monitor, and no table shows every GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from run_folders import GPU_BYTES, append, event, make_gpu_run, memory, sample, write_lines

from dist_trainer.memory.targets import Verdict
from dist_trainer.records import host_memory_file, memory_file, samples_file
from dist_trainer.report import tables
from dist_trainer.report.charts.curves import Compared, memory_chart
from dist_trainer.report.page import make_page, render_html, render_markdown
from dist_trainer.report.reading.findings import read_findings
from dist_trainer.report.summary import rows, summarise, summary_of
from dist_trainer.units import GB

PEAKS = [2_310_000_000, 2_200_000_000, 2_600_000_000, 2_100_000_000]
MANY = [2_000_000_000 + 1_000_000 * (7 * rank % 600) for rank in range(600)]


def without_hosts(verdicts: tuple[Verdict, ...]) -> list[Verdict]:
    return [dataclasses.replace(verdict, host="") for verdict in verdicts]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    run_dir = make_gpu_run(tmp_path_factory.mktemp("many") / "run", MANY, num_samples=5, num_gpus_a_host=8)
    findings = read_findings(run_dir)
    return Compared("many", findings, summary_of(findings))


def test_a_monitor_a_host_leads_to_the_same_verdicts_as_one_a_rank(tmp_path: Path) -> None:
    alone = summarise(make_gpu_run(tmp_path / "alone", PEAKS))
    hosts = make_gpu_run(tmp_path / "hosts", PEAKS, num_gpus_a_host=2)
    assert sorted(path.name for path in (hosts / "records").glob("memory-*")) == [
        "memory-host-0.jsonl",
        "memory-host-2.jsonl",
        "memory-samples-host-0.jsonl",
        "memory-samples-host-2.jsonl",
    ]
    summary = summarise(hosts)
    assert without_hosts(summary.verdicts) == without_hosts(alone.verdicts)
    assert [verdict.host for verdict in summary.verdicts] == ["host0", "host0", "host2", "host2"]
    assert summary.verdict == alone.verdict


def test_the_curves_and_the_phases_are_those_of_each_rank(tmp_path: Path) -> None:
    runs = []
    for name, num_gpus in (("alone", None), ("hosts", 2)):
        findings = read_findings(make_gpu_run(tmp_path / name, PEAKS, num_gpus_a_host=num_gpus))
        runs.append(Compared(name, findings, summary_of(findings)))
    alone, hosts = ([one.buckets for one in memory_chart(run.findings, run.summary).series] for run in runs)
    assert alone == hosts and len(alone) == 4
    phases = [[history.phase_peaks for history in run.findings.histories] for run in runs]
    assert phases[0] == phases[1]


def test_a_run_that_went_on_with_more_ranks_has_the_peaks_of_both_times(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path, PEAKS, num_gpus_a_host=4)
    records = run_dir / "records"
    write_lines(records / samples_file("rank-1"), [sample(1.0, 2_900_000_000, device="GPU-1")])
    write_lines(records / memory_file(1), [memory(1, 1, 2_000_000_000, device="GPU-1", reserved_peak_bytes=5)])
    write_lines(records / samples_file("rank-3"), [sample(1.0, 1_000_000_000, device="GPU-3")])
    findings = read_findings(run_dir)
    peaks = {one.rank: one.peak_bytes for one in summary_of(findings).verdicts}
    assert peaks == {0: PEAKS[0], 1: 2_900_000_000, 2: PEAKS[2], 3: PEAKS[3]}
    curve = findings.histories[1].curve
    assert curve is not None
    assert max(bucket.high for bucket in curve.buckets()) == 2_900_000_000


def test_what_is_not_known_of_one_gpu_of_a_host_is_not_held_against_the_others(tmp_path: Path) -> None:
    lost = event(
        "monitor", "the GPU is lost", 30.0, rank=1, source="rank-1", trouble="gpu lost", unknown=["used_bytes"]
    )
    summary = summarise(make_gpu_run(tmp_path, PEAKS, num_gpus_a_host=4, events=[lost]))
    assert [verdict.judgement for verdict in summary.verdicts] == ["met", "not judged", "missed", "met"]


def test_records_without_samples_are_enough(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path, PEAKS, num_gpus_a_host=4)
    (run_dir / "records" / samples_file("host-0")).unlink()
    append(run_dir / "records" / host_memory_file(0), '{"half a line')
    assert [verdict.peak_bytes for verdict in summarise(run_dir).verdicts] == PEAKS


def test_of_very_many_gpus_the_spread_and_the_fullest_hosts_are_shown(many: Compared) -> None:
    spread, hosts = tables.all_gpus_tables(many.summary)
    assert spread.title == "The peaks of all 600 GPUs"
    assert [(row[0], row[1]) for row in spread.rows] == [
        ("highest", "2.60 GB"),
        ("99% are at most", "2.59 GB"),
        ("90% are at most", "2.54 GB"),
        ("half are at most", "2.30 GB"),
        ("10% are at most", "2.06 GB"),
        ("lowest", "2.00 GB"),
    ]
    top = MANY.index(max(MANY))
    assert spread.rows[0][2:] == (f"rank {top}", f"host{top - top % 8}", f"GPU-{top}")
    assert "501 met, 99 missed" in spread.note
    assert hosts.title == "16 of 75 hosts, the fullest first"
    num_missed = [int(row[-1]) for row in hosts.rows]
    assert num_missed == sorted(num_missed, reverse=True) and num_missed[0] > 1
    assert set(hosts.kinds) == {"missed"}


def test_the_page_of_very_many_gpus_is_short_and_names_the_worst(many: Compared) -> None:
    page = make_page(many)
    html, text = render_html(page), render_markdown(page)
    assert len(html) < 300_000 and len(text) < 10_000
    assert "Target missed on 99 of 600 GPUs" in text
    assert "16 of 75 hosts, the fullest first" in html
    (others,) = (value for name, value in rows(many.summary) if name == "memory, others")
    assert others == "592 more, none of them higher; half of all at most 2.30 GB, the lowest 2.00 GB"


def test_of_many_gpus_only_the_fullests_curve_is_kept(many: Compared) -> None:
    memory_found = many.findings.memory
    kept = [history for history in memory_found.histories if history.curve is not None]
    assert [history.measured.rank for history in kept] == [MANY.index(max(MANY))]
    band, top = memory_chart(many.findings, many.summary).series
    assert (band.name, top.name) == ("all 600", f"rank {MANY.index(max(MANY))}, the fullest")
    assert max(bucket.high for bucket in band.buckets) == max(bucket.high for bucket in top.buckets) == max(MANY) / GB


def test_troubles_of_very_many_gpus_are_told_in_a_few_lines(tmp_path: Path) -> None:
    events = [
        event("monitor", "lost", 1.0 + rank, rank=rank, source=f"rank-{rank}", trouble="x", unknown=["used_bytes"])
        for rank in range(300)
    ]
    run_dir = make_gpu_run(tmp_path, [GPU_BYTES // 2] * 300, num_samples=1, num_gpus_a_host=8, events=events)
    findings = read_findings(run_dir)
    page = make_page(Compared("x", findings, summary_of(findings)))
    assert len(render_markdown(page)) < 12_000
