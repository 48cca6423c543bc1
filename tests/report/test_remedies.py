from __future__ import annotations

import json
from pathlib import Path

from plans import PARTS, make_plan
from run_folders import make_gpu_run, make_monitor_run, sample, write_lines

from dist_trainer.records import samples_file
from dist_trainer.report.summary import summarise

MISSED = 2_800_000_000


def advice(
    folder: Path, *, parts: dict[str, float] | None = None, world_size: int = 1, **deepspeed: object
) -> list[str]:
    plan = make_plan(
        allocated=2_000_000_000,
        reserved=2_200_000_000,
        used=MISSED,
        parts=parts or PARTS,
        world_size=world_size,
    )
    run_dir = make_gpu_run(folder, [MISSED] * world_size, plan=plan, deepspeed=deepspeed)
    return list(summarise(run_dir).verdict.advice)


def test_what_holds_most_is_the_first_thing_to_change(tmp_path: Path) -> None:
    first, *_ = advice(tmp_path / "loss", parts={"logits and loss": 0.6, "parameters": 0.2, "activations": 0.2})
    assert "activations and logits and loss hold 2.24 GB: micro batch 1" in first
    second = advice(tmp_path / "buckets", parts={"buckets": 0.7, "parameters": 0.3})[0]
    assert "buckets hold 1.96 GB: reduce_bucket_size 5e7" in second
    third = advice(tmp_path / "acts", parts={"activations": 0.8, "parameters": 0.2}, train_micro_batch_size_per_gpu=1)[
        0
    ]
    assert "activations hold 2.24 GB: checkpointing" in third and "--checkpointing" in third
    states = advice(tmp_path / "states", parts={"optimizer states": 0.8, "master weights": 0.2})
    assert any("optimizer states and master weights hold 2.80 GB: optimizer offload" in line for line in states)


def test_what_is_in_force_is_not_advised(tmp_path: Path) -> None:
    zero = {"stage": 2, "reduce_bucket_size": 20_000_000}
    lines = advice(
        tmp_path,
        parts={"buckets": 0.5, "activations": 0.5},
        zero_optimization=zero,
        activation_checkpointing={},
        train_micro_batch_size_per_gpu=1,
    )
    assert not any("bucket" in line or "checkpointing" in line or "micro batch" in line for line in lines)


def test_slack_is_for_expandable_segments_where_they_are_off(tmp_path: Path) -> None:
    plan = make_plan(allocated=1, used=MISSED, parts={"allocator slack": 0.5, "parameters": 0.5})
    run_dir = make_gpu_run(tmp_path, (MISSED,), plan=plan)
    assert not any("slack" in line for line in summarise(run_dir).verdict.advice)
    path = run_dir / "resolved" / "run.yaml"
    path.write_text(path.read_text() + "memory: {expandable_segments: false}\n")
    assert any("--set memory.expandable_segments=true" in line for line in summarise(run_dir).verdict.advice)


def test_another_programs_memory_is_said_to_be_that(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path, (MISSED,))
    rows = [sample(float(at), MISSED, process_bytes=1_800_000_000) for at in range(25)]
    write_lines(run_dir / "records" / samples_file("rank-0"), rows)
    assert summarise(run_dir).verdict.advice[0].startswith("about 1.00 GB on the GPU is not of this rank")


def test_more_than_the_plans_band_is_said_not_to_be_explained_by_it(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path, (MISSED,), plan=make_plan(allocated=1_000_000_000, used=2_000_000_000))
    assert summarise(run_dir).verdict.advice[0].startswith("0.70 GB was in use above the plan's upper bound")


def test_without_a_plan_the_makeup_is_said_not_to_be_known(tmp_path: Path) -> None:
    assert summarise(make_gpu_run(tmp_path, (MISSED,))).verdict.advice == (
        "what the memory is made of is not known: no plan for a GPU is in the run's folder",
    )


def test_nothing_is_advised_where_nothing_was_missed(tmp_path: Path) -> None:
    assert summarise(make_gpu_run(tmp_path / "met")).verdict.advice == ()
    assert summarise(make_monitor_run(tmp_path / "watched")).verdict.advice == ()


def test_summary_json_has_the_advice(tmp_path: Path) -> None:
    from dist_trainer.report.summary import write

    summary = summarise(make_gpu_run(tmp_path, (MISSED,)))
    assert json.loads(write(summary, tmp_path).read_text())["verdict"]["advice"] == list(summary.verdict.advice)
