from __future__ import annotations

import dataclasses

import pytest
from plans import make_plan

from dist_trainer.config.run import TargetConfig
from dist_trainer.memory.targets import Baseline, Measured, Verdict, judge

TARGETS = TargetConfig(baseline_bytes=4_000_000_000, target_bytes=2_500_000_000)
GPU = Measured(
    source="rank-0",
    rank=0,
    host="h1",
    device="GPU-1",
    used_bytes=2_000_000_000,
    used_version=2,
    device_bytes=24_000_000_000,
    process_bytes=1_900_000_000,
    allocated_bytes=1_000_000_000,
    reserved_bytes=1_500_000_000,
    resident_bytes=9_000_000_000,
)
CPU = Measured("rank-0", 0, "h1", "cpu", resident_bytes=9_000_000_000)


def used(num_bytes: int | None, **others: object) -> Measured:
    return dataclasses.replace(GPU, used_bytes=num_bytes, **others)  # type: ignore[arg-type]


def only(measured: Measured, targets: TargetConfig | None = TARGETS, **others: object) -> Verdict:
    (verdict,) = judge([measured], targets, **others)  # type: ignore[arg-type]
    return verdict


def test_below_the_target_it_is_met_and_the_reduction_is_of_the_run_files_baseline() -> None:
    verdict = only(GPU)
    assert (verdict.judgement, verdict.reason) == ("met", "peak device memory by NVML")
    assert (verdict.peak_bytes, verdict.target_bytes, verdict.reduction) == (2_000_000_000, 2_500_000_000, 0.5)
    assert (verdict.baseline_bytes, verdict.baseline_origin) == (4_000_000_000, "the run file's figure")


def test_headroom_is_left_to_the_target_and_to_the_device_or_is_missing() -> None:
    assert (only(GPU).target_headroom_bytes, only(GPU).device_headroom_bytes) == (500_000_000, 22_000_000_000)
    assert only(used(3_000_000_000)).target_headroom_bytes == -500_000_000
    assert only(used(3_000_000_000, device_bytes=None)).device_headroom_bytes is None


def test_a_gb_is_a_thousand_million_bytes_and_the_target_itself_is_met() -> None:
    targets = TargetConfig.model_validate({"baseline_bytes": "4 GB", "target_bytes": "2.5 GB"})
    assert only(used(2_500_000_000), targets).judgement == "met"
    assert only(used(2_500_000_001), targets).judgement == "missed"
    gib = TargetConfig.model_validate({"baseline_bytes": "4 GiB", "target_bytes": "2.5 GiB"})
    assert only(used(2_500_000_001), gib).judgement == "met"


def test_above_the_baseline_the_reduction_is_negative() -> None:
    assert only(used(5_000_000_000)).reduction == pytest.approx(-0.25)


def test_a_baseline_run_takes_the_place_of_the_run_files_figure() -> None:
    verdict = only(GPU, baseline=Baseline(8_000_000_000, "runs/before"))
    assert (verdict.reduction, verdict.baseline_origin) == (0.75, "measured in runs/before")
    without_targets = only(GPU, None, baseline=Baseline(8_000_000_000, "runs/before"))
    assert (without_targets.judgement, without_targets.reduction) == ("not judged", 0.75)


def test_without_a_gpu_nothing_is_judged() -> None:
    verdict = only(CPU)
    assert (verdict.judgement, verdict.reason) == ("not judged", "no GPU")
    assert (verdict.peak_bytes, verdict.reduction, verdict.resident_bytes) == (None, None, 9_000_000_000)
    assert verdict.target_bytes == 2_500_000_000


def test_without_a_reading_a_gpu_is_not_judged_by_the_resident_set() -> None:
    verdict = only(used(None))
    assert (verdict.judgement, verdict.reason) == ("not judged", "NVML gave no reading")
    assert (verdict.peak_bytes, verdict.reduction, verdict.target_headroom_bytes) == (None, None, None)
    assert only(used(None, unknown="driver not loaded")).reason == "NVML gave no reading: driver not loaded"


def test_without_targets_a_reading_is_not_judged() -> None:
    verdict = only(GPU, None)
    assert (verdict.judgement, verdict.reason) == ("not judged", "no targets are set")
    assert (verdict.peak_bytes, verdict.baseline_bytes, verdict.reduction) == (2_000_000_000, None, None)


def test_a_gpu_that_was_lost_part_way_is_not_judged_by_what_was_seen_before() -> None:
    verdict = only(used(2_000_000_000, unknown="not known after 12:31:07 (gpu lost)"))
    assert (verdict.judgement, verdict.reason) == ("not judged", "not known after 12:31:07 (gpu lost)")
    assert (verdict.peak_bytes, verdict.reduction) == (2_000_000_000, None)


def test_what_was_seen_before_a_gpu_was_lost_is_enough_to_miss_the_target() -> None:
    verdict = only(used(2_600_000_000, unknown="not known after 12:31:07 (gpu lost)"))
    assert (verdict.judgement, verdict.reduction) == ("missed", None)
    assert verdict.notes == ("not known after 12:31:07 (gpu lost)",)


def test_what_qualifies_a_figure_is_noted() -> None:
    assert only(GPU).notes == ()
    assert "the driver's own reserve" in only(used(1, used_version=1)).notes[0]
    assert "sampling was off" in only(used(1, is_sampled=False)).notes[0]


def test_each_quantity_that_was_measured_is_held_against_the_plan_of_its_rank() -> None:
    plan = make_plan(allocated=1_100_000_000, reserved=1_500_000_000, used=1_920_000_000)
    found = {one.quantity: one for one in only(GPU, plan=plan).predictions}
    assert list(found) == ["allocated", "reserved", "NVML used"]
    assert found["allocated"].error_percent == pytest.approx(10.0)
    assert found["reserved"].error_percent == 0.0
    assert found["NVML used"].error_percent == pytest.approx(-4.0)
    assert [one.is_within_band for one in found.values()] == [False, True, True]
    some = used(None, reserved_bytes=None)
    assert [one.quantity for one in only(some, plan=plan).predictions] == ["allocated"]


def test_on_a_cpu_the_allocators_peak_is_held_against_the_planned_allocated_bytes() -> None:
    plan = make_plan(allocated=1_000, device="cpu", phases={"forward": 800, "backward": 1_000})
    cpu = dataclasses.replace(CPU, allocator_bytes={"forward": 800, "backward": 1_250})
    found = [(one.quantity, one.error_percent) for one in only(cpu, plan=plan).predictions]
    assert found == [
        ("CPU allocator", pytest.approx(-20.0)),
        ("CPU allocator, forward", 0.0),
        ("CPU allocator, backward", pytest.approx(-20.0)),
    ]


def test_a_plan_for_another_kind_of_device_or_for_a_watched_program_is_held_against_nothing() -> None:
    assert only(GPU, plan=make_plan(allocated=1, device="cpu")).predictions == ()
    assert only(dataclasses.replace(CPU, allocator_bytes={"forward": 1}), plan=make_plan(allocated=1)).predictions == ()
    assert only(dataclasses.replace(GPU, source="gpu-0", rank=None), plan=make_plan(allocated=1)).predictions == ()


def test_each_gpu_is_judged_by_its_own_peak() -> None:
    verdicts = judge([used(1_000_000_000), used(5_000_000_000, rank=1, source="rank-1")], TARGETS)
    assert [(verdict.source, verdict.judgement) for verdict in verdicts] == [("rank-0", "met"), ("rank-1", "missed")]
    assert judge([], TARGETS) == []
