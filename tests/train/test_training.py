"""Whole runs on real ranks: what must agree agrees, and a run that was stopped goes on as if it had not been."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks import losses, mini_config, run_ranks, train

from dist_trainer.checkpoints import index
from dist_trainer.config import run as run_file
from dist_trainer.memory.checkpoint_size import FRAME_BYTES, checkpoint_bytes
from dist_trainer.memory.engines.settings import read_settings
from dist_trainer.model.size import num_parameters
from dist_trainer.records import read_steps
from dist_trainer.redact import REDACTED

pytestmark = pytest.mark.integration

FP32 = ("--precision", "fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def zero2_losses(folder: Path) -> list[float]:
    """20 steps in fp32 under ZeRO-2 on two ranks: what the others are compared with."""
    return losses(train(folder, "zero2", *FP32))


def largest_checkpoint(run_dir: Path) -> int:
    """Its bytes, all files of all ranks together."""
    folders = (run_dir / "checkpoints").glob("step-*")
    return max(sum(file.stat().st_size for file in folder.rglob("*")) for folder in folders)


def computed_checkpoint(run_dir: Path, world_size: int = 2) -> int:
    """What a checkpoint of this run was computed to take."""
    config = json.loads((run_dir / "resolved" / "ds_config.json").read_text())
    run = run_file.check(run_file.read(run_dir / "resolved" / "run.yaml"), source="run.yaml")
    return checkpoint_bytes(read_settings(config, cuda=False), num_parameters(run.model), world_size)


def assert_close(ours: list[float], theirs: list[float]) -> None:
    assert len(ours) == len(theirs) == 20
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-5


@pytest.mark.parametrize("ds", ["zero1", "zero3"])
def test_fp32_losses_agree_over_zero_stages(folder: Path, zero2_losses: list[float], ds: str) -> None:
    assert_close(losses(train(folder, ds, *FP32, "--ds", ds)), zero2_losses)


def test_fp32_losses_without_zero_agree_and_the_gradient_norm_is_recorded(
    folder: Path, zero2_losses: list[float]
) -> None:
    run_dir = train(folder, "zero0", *FP32, "--set", "zero_optimization.stage=0")
    assert_close(losses(run_dir), zero2_losses)
    norms = [step.grad_norm for step in read_steps(run_dir / "records")]
    theirs = [step.grad_norm for step in read_steps(folder / "zero2" / "records")]
    assert norms == pytest.approx(theirs, rel=1e-3)


def test_the_loss_falls(zero2_losses: list[float]) -> None:
    assert zero2_losses[-1] < zero2_losses[0] - 0.2


def test_accumulation_four_by_two_agrees_with_one_by_eight(folder: Path, zero2_losses: list[float]) -> None:
    one_by_eight = train(folder, "one-by-eight", *FP32, "--micro-batch", "8", "--accumulation", "1")
    assert_close(losses(one_by_eight), zero2_losses)


def test_one_rank_agrees_with_two_of_the_same_global_batch(folder: Path, zero2_losses: list[float]) -> None:
    alone = train(folder, "alone", *FP32, "--accumulation", "16", world_size=1)
    assert_close(losses(alone), zero2_losses)


def test_checkpointing_changes_no_bit(folder: Path, zero2_losses: list[float]) -> None:
    assert losses(train(folder, "no-checkpointing", *FP32, "--no-checkpointing")) == zero2_losses


@pytest.mark.parametrize("ds", ["zero2", "zero3"])
def test_checkpointing_with_dropout_changes_no_bit_in_bf16(folder: Path, ds: str) -> None:
    switches = ("--ds", ds, "--set", "model.dropout=0.2", "--phase", "1")
    kept = losses(train(folder, f"{ds}-kept", *switches, "--no-checkpointing"))
    assert losses(train(folder, f"{ds}-recomputed", *switches)) == kept


@pytest.mark.parametrize("stage", ["0", "2", "3"])
def test_a_run_stopped_in_each_phase_and_resumed_gives_the_losses_of_an_undisturbed_one(
    folder: Path, stage: str
) -> None:
    switches = ("--set", f"zero_optimization.stage={stage}", "--set", "model.dropout=0.1")
    # Stage 0 accumulates in the weights' own precision.
    switches = (*switches, "--set", "checkpoints.at_end=true", "--set", "data_types.grad_accum_dtype=bf16")
    undisturbed = train(folder, f"undisturbed-{stage}", *switches)
    for stop in ("7", "14", "20") if stage == "2" else ("7", "20"):
        resumed = train(folder, f"resumed-{stage}", *switches, "--max-steps", stop)
    ours, theirs = (read_steps(run_dir / "records") for run_dir in (resumed, undisturbed))
    assert [step.step for step in ours] == list(range(1, 21))
    assert [(step.loss, step.learning_rate, step.phase, step.grad_norm) for step in ours] == [
        (step.loss, step.learning_rate, step.phase, step.grad_norm) for step in theirs
    ]
    # So small a model's checkpoint is as much frame as content: no more than computed, and all of the content.
    frames = 2 * FRAME_BYTES
    assert computed_checkpoint(resumed) - frames <= largest_checkpoint(resumed) <= computed_checkpoint(resumed)


def test_compiled_and_eager_losses_agree_and_what_was_compiled_is_kept_in_the_cache(
    folder: Path, zero2_losses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    compiled = losses(train(folder, "compiled", *FP32, "--compile", "--phase", "1", "--no-checkpointing"))
    assert max(abs(a - b) for a, b in zip(compiled, zero2_losses[:10], strict=True)) < 1e-4
    assert any((folder / "cache" / "dist_trainer" / "inductor").rglob("*.so"))


def test_deepspeeds_tensorboard_block_gets_the_loss_as_well(folder: Path, zero2_losses: list[float]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    block = ("tensorboard.enabled=true", f"tensorboard.output_path={folder}/board", "tensorboard.job_name=mini")
    settings = [word for setting in block for word in ("--set", setting)]
    train(folder, "board-run", *FP32, *settings, "--phase", "1", "--accumulation", "16", world_size=1)
    written = EventAccumulator(str(folder / "board" / "mini"))
    written.Reload()
    values = [event.value for event in written.Scalars("Train/loss")]
    assert values == pytest.approx(zero2_losses[:10], abs=1e-5)


@pytest.mark.parametrize("ds", ["zero2", "zero3"])
def test_the_chunked_loss_agrees_with_the_full_one(folder: Path, zero2_losses: list[float], ds: str) -> None:
    run_dir = train(folder, f"chunked-{ds}", *FP32, "--ds", ds, "--set", "model.loss=chunked", "--phase", "1")
    assert losses(run_dir) == pytest.approx(zero2_losses[:10], abs=1e-5)


def test_tiny_learns_more_than_how_often_each_token_occurs(folder: Path) -> None:
    run_dir = folder / "tiny"
    # The shipped run, of which a quarter of the tokens does at this rate.
    quickly = ["--phase", "1", "--max-steps", "80", "--micro-batch", "8", "--accumulation", "1", "--lr", "8e-3"]
    ended = run_ranks(["-m", "dist_trainer", "train", *quickly, "--run-dir", str(run_dir)], cwd=folder, world_size=2)
    assert ended.status == 0, ended.output
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["num_steps"] == 80
    assert summary["validation_loss"] < summary["unigram_entropy_nats"] - 0.5
    assert [verdict["reason"] for verdict in summary["verdicts"]] == ["no GPU", "no GPU"]
    assert largest_checkpoint(run_dir) == pytest.approx(computed_checkpoint(run_dir), rel=0.02)


def test_a_checkpoint_is_due_by_minutes_as_rank_zeros_clock_says(folder: Path) -> None:
    run_dir = train(folder, "by-minutes", "--set", "checkpoints.every_minutes=1e-9", "--max-steps", "3")
    saved = sorted(path.name for path in (run_dir / "checkpoints").glob("step-*"))
    assert saved == ["step-1", "step-2", "step-3"]
    assert len(list((run_dir / "checkpoints" / "step-2").glob("rank-*.safetensors"))) == 2


@pytest.mark.parametrize("split", ["train", "val"])
def test_data_too_short_for_a_later_phase_is_an_error_before_anything_trains(folder: Path, split: str) -> None:
    data = folder / f"short-{split}"
    data.mkdir()
    for name in ("train", "val"):
        (data / f"{name}.bin").write_bytes(b"\x01\x00" * (50 if name == split else 500))
    run_dir = folder / f"short-{split}-run"
    words = ["--config", str(mini_config(folder)), "--run-dir", str(run_dir), "--set", f"data.source={data}"]
    ended = run_ranks(["-m", "dist_trainer", "train", *words], cwd=folder, world_size=1)
    assert ended.status == 2
    assert "shorter than one sequence" in ended.output and str(data / f"{split}.bin") in ended.output
    assert "at least 65" in ended.output
    assert not run_dir.exists()


def test_a_key_of_a_service_stands_in_one_file_that_is_its_owners(folder: Path) -> None:
    comet = '{"enabled": false, "api_key": "of-the-user"}'
    switches = ("--set", f"comet={comet}", "--set", "comet.api_key=of-the-user", "--set", "checkpoints.at_end=true")
    run_dir = train(folder, "with-a-key", *switches, "--max-steps", "1", world_size=1)
    told = [file for file in run_dir.rglob("*") if file.is_file() and b"of-the-user" in file.read_bytes()]
    assert told == [run_dir / "resolved" / "ds_config.json"]
    assert told[0].stat().st_mode & 0o777 == 0o600
    kept = index.read(run_dir / "checkpoints" / "step-1").made_by.deepspeed
    assert kept["comet"]["api_key"] == REDACTED and kept["zero_optimization"]["stage"] == 2
