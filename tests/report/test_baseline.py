from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_folders import event, make_cpu_run, make_gpu_run, make_monitor_run, sample, write_lines

from dist_trainer.config.run import ModelConfig
from dist_trainer.errors import UserError
from dist_trainer.records import samples_file
from dist_trainer.report.baseline import read_baseline

MODEL = ModelConfig(num_layers=2, hidden_size=32, num_heads=2, vocab_size=2048, context_length=64)


def refusal(run_dir: Path, model: ModelConfig | None = MODEL) -> str:
    with pytest.raises(UserError) as caught:
        read_baseline(run_dir, model, None)
    return str(caught.value)


def test_the_baseline_is_the_highest_measured_peak_of_that_run(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path, (3_500_000_000, 3_600_000_000))
    found = read_baseline(run_dir, MODEL, {"train_batch_size": 16})
    assert (found.num_bytes, found.run_dir, found.notes) == (3_600_000_000, str(run_dir), ())


def test_dropout_and_the_form_of_the_loss_may_differ(tmp_path: Path) -> None:
    other = MODEL.model_copy(update={"dropout": 0.3, "loss": "chunked"})
    assert read_baseline(make_gpu_run(tmp_path), other, None).num_bytes == 2_310_000_000


def test_another_global_batch_is_noted(tmp_path: Path) -> None:
    found = read_baseline(make_gpu_run(tmp_path), MODEL, {"train_batch_size": 512})
    assert found.notes == ("the baseline took 16 sequences a step, this run 512",)


def test_another_model_is_refused_with_what_differs(tmp_path: Path) -> None:
    text = refusal(make_gpu_run(tmp_path, hidden_size=64))
    assert "another model" in text and "model.hidden_size" in text and "64" in text and "expected: 32" in text


def test_a_run_whose_peak_is_not_known_is_refused_with_the_reason(tmp_path: Path) -> None:
    assert "rank-0: no GPU" in refusal(make_cpu_run(tmp_path / "cpu"))
    failed = make_gpu_run(tmp_path / "failed", ends=False, events=[event("error", "out of memory", 20.0)])
    assert "failed at step 12: out of memory" in refusal(failed)
    facts = {"diagnostic": "gpu lost", "source": "rank-0", "unknown": ["used_bytes"]}
    lost = make_gpu_run(tmp_path / "lost", events=[event("monitor", "lost", 15.0, **facts)])
    write_lines(lost / "records" / samples_file("rank-0"), [sample(5.0, 2_000_000_000)])
    assert "rank-0: not known after" in refusal(lost)
    unread = make_gpu_run(tmp_path / "unread", (0,))
    write_lines(unread / "records" / samples_file("rank-0"), [sample(5.0, None)])
    write_lines(unread / "records" / "memory-rank-0.jsonl", [])
    assert "NVML gave no reading" in refusal(unread)


def test_a_folder_that_is_no_runs_is_refused(tmp_path: Path) -> None:
    assert "no records of a run there" in refusal(tmp_path)
    assert "no such folder" in refusal(tmp_path / "nowhere")


def test_a_watched_program_is_compared_with_a_watched_program_alone(tmp_path: Path) -> None:
    run_dir = make_monitor_run(tmp_path)
    assert read_baseline(run_dir, None, None).num_bytes == 3_000_000_000
    assert "not known whether" in refusal(run_dir)


def test_a_run_file_that_is_not_readable_is_not_taken_for_the_same_model(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path)
    (run_dir / "resolved" / "run.yaml").write_text(json.dumps({"name": "x", "novelty": 1}))
    assert "not known whether" in refusal(run_dir)
