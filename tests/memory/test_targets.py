from __future__ import annotations

import dataclasses

import pytest

from dist_trainer.config.run import TargetConfig
from dist_trainer.memory.targets import Verdict, judge
from dist_trainer.records import MemoryRecord

TARGETS = TargetConfig(baseline_bytes=4_000_000_000, target_bytes=2_500_000_000)
GPU = MemoryRecord(
    step=1,
    rank=0,
    host="h1",
    device="GPU-1",
    allocated_peak_bytes=1_000_000_000,
    reserved_peak_bytes=1_500_000_000,
    device_used_bytes=2_000_000_000,
    rss_bytes=9_000_000_000,
    time_s=0.0,
)
CPU = dataclasses.replace(
    GPU, device="cpu", allocated_peak_bytes=None, reserved_peak_bytes=None, device_used_bytes=None
)


def readings(record: MemoryRecord, *used: int | None) -> list[MemoryRecord]:
    return [dataclasses.replace(record, step=step, device_used_bytes=value) for step, value in enumerate(used, 1)]


def only(records: list[MemoryRecord], targets: TargetConfig | None = TARGETS) -> Verdict:
    (verdict,) = judge(records, targets)
    return verdict


def test_below_the_target_it_is_met_and_the_reduction_is_of_the_baseline() -> None:
    verdict = only([GPU])
    assert verdict == Verdict(
        rank=0,
        host="h1",
        device="GPU-1",
        peak_bytes=2_000_000_000,
        is_resident=False,
        baseline_bytes=4_000_000_000,
        target_bytes=2_500_000_000,
        judgement="met",
        reason="peak device memory by NVML",
    )
    assert verdict.reduction == 0.5


def test_the_highest_reading_counts_wherever_it_stands() -> None:
    verdict = only(readings(GPU, 1_000_000_000, 3_000_000_000, None, 2_000_000_000))
    assert (verdict.peak_bytes, verdict.judgement) == (3_000_000_000, "missed")
    assert verdict.reduction == 0.25


def test_a_gb_is_a_thousand_million_bytes_and_the_target_itself_is_met() -> None:
    targets = TargetConfig.model_validate({"baseline_bytes": "4 GB", "target_bytes": "2.5 GB"})
    assert only(readings(GPU, 2_500_000_000), targets).judgement == "met"
    assert only(readings(GPU, 2_500_000_001), targets).judgement == "missed"
    gib = TargetConfig.model_validate({"baseline_bytes": "4 GiB", "target_bytes": "2.5 GiB"})
    assert only(readings(GPU, 2_500_000_001), gib).judgement == "met"


def test_above_the_baseline_the_reduction_is_negative() -> None:
    assert only(readings(GPU, 5_000_000_000)).reduction == pytest.approx(-0.25)


def test_without_a_gpu_nothing_is_judged_and_the_highest_resident_set_is_shown() -> None:
    records = [dataclasses.replace(CPU, rss_bytes=size) for size in (5, 9, 7)]
    verdict = only(records)
    assert (verdict.judgement, verdict.reason) == ("not judged", "no GPU")
    assert (verdict.peak_bytes, verdict.is_resident) == (9, True)
    assert verdict.reduction is None
    assert verdict.target_bytes == 2_500_000_000


def test_without_a_reading_a_gpu_is_not_judged_by_the_resident_set() -> None:
    verdict = only(readings(dataclasses.replace(GPU, rss_bytes=1_000), None, None))
    assert (verdict.judgement, verdict.reason) == ("not judged", "NVML gave no reading")
    assert (verdict.peak_bytes, verdict.is_resident) == (1_000, True)
    assert verdict.reduction is None


def test_without_targets_a_reading_is_not_judged() -> None:
    verdict = only([GPU], None)
    assert (verdict.judgement, verdict.reason) == ("not judged", "the run file has no targets")
    assert (verdict.peak_bytes, verdict.is_resident) == (2_000_000_000, False)
    assert (verdict.baseline_bytes, verdict.target_bytes, verdict.reduction) == (None, None, None)


def test_each_rank_is_judged_by_its_own_readings_in_rank_order() -> None:
    records = [
        dataclasses.replace(record, rank=rank)
        for rank in (10, 2)
        for record in readings(GPU, 1_000_000_000 * (rank // 2), 500_000_000)
    ]
    verdicts = judge(reversed(records), TARGETS)
    assert [(verdict.rank, verdict.peak_bytes, verdict.judgement) for verdict in verdicts] == [
        (2, 1_000_000_000, "met"),
        (10, 5_000_000_000, "missed"),
    ]


def test_no_records_give_no_verdict() -> None:
    assert judge([], TARGETS) == []
