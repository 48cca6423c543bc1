"""Runs that are resumed with something changed, held against a plain PyTorch loop that changes it by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ended, mini_config, run_ranks, train

from dist_trainer.checkpoints.index import data_file_name, read
from dist_trainer.config import run as run_file
from dist_trainer.data.corpus import standard_library_dataset
from dist_trainer.data.sampler import BatchPlan, Order
from dist_trainer.data.tokens import open_tokens
from dist_trainer.model.gpt import GPT
from dist_trainer.records import EVENTS_FILE, Event, read_records, read_steps

pytestmark = pytest.mark.integration

# Two phases on one dataset; the run is stopped in the second, and goes on with everything below changed.
PHASES = [{"name": "short", "sequence_length": 32, "steps": 4}, {"name": "long", "sequence_length": 64, "steps": 8}]
STOP = 6


@dataclass(frozen=True)
class Settings:
    """What of a DeepSpeed file a plain loop needs."""

    micro_batch: int
    accumulation: int
    clipping: float
    adamw: dict[str, Any]
    step_lr: dict[str, Any]

    def write(self, path: Path, stage: int) -> Path:
        block = {
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": self.clipping,
            "optimizer": {"type": "AdamW", "params": {**self.adamw, "torch_adam": True}},
            "scheduler": {"type": "StepLR", "params": self.step_lr},
            "zero_optimization": {"stage": stage},
        }
        path.write_text(json.dumps(block))
        return path


BEFORE = Settings(
    2,
    2,
    1.0,
    {"lr": 3e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
    {"step_size": 2, "gamma": 0.5},
)
AFTER = Settings(
    1,
    3,
    0.1,
    {"lr": 2e-3, "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.5},
    {"step_size": 3, "gamma": 0.9},
)


def plain_losses(folder: Path) -> list[float]:
    """The losses of a loop of a few lines, in which a person changes the settings after the step at which to stop."""
    config = run_file.check(run_file.read(mini_config(folder)), source="mini.yaml")
    torch.manual_seed(config.seed)
    model = GPT(config.model)
    tokens = open_tokens(standard_library_dataset(config.model.vocab_size), "train", config.model.vocab_size)
    groups = model.parameter_groups()
    optimizer = torch.optim.AdamW(groups, **BEFORE.adamw)
    losses = []
    settings, sample, step = BEFORE, 0, 0
    previous: Order | None = None
    for phase in PHASES:
        order = Order(tokens.num_tokens, int(phase["sequence_length"]), config.model.context_length, config.seed)
        sample = 0 if previous is None else order.sample_at(previous.place(sample))
        previous = order
        for _ in range(int(phase["steps"])):
            if step == STOP:
                settings = AFTER
                for group in optimizer.param_groups:
                    decays = group["weight_decay"] > 0
                    group.update(settings.adamw)
                    group["weight_decay"] = settings.adamw["weight_decay"] if decays else 0.0
            plan = BatchPlan(order, settings.micro_batch * settings.accumulation, 1, 1, sample)
            sample += plan.global_batch
            starts = [window * order.sequence_length for window in plan.windows(0, 0, 0)]
            rows = [tokens.read(start, order.sequence_length + 1).astype("int64") for start in starts]
            batch = torch.stack([torch.from_numpy(row) for row in rows])
            loss = model(batch[:, :-1], batch[:, 1:])
            losses.append(loss.item())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clipping)
            decay = settings.step_lr["gamma"] ** (step // settings.step_lr["step_size"])
            for group in optimizer.param_groups:
                group["lr"] = settings.adamw["lr"] * decay
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return losses


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_run_resumed_with_other_settings_does_what_they_say_on_the_samples_that_are_next(
    tmp_path: Path, stage: int
) -> None:
    switches = ("--precision", "fp32", "--set", f"phases={json.dumps(PHASES)}", "--set", "checkpoints.at_end=true")
    before, after = BEFORE.write(tmp_path / "before.json", stage), AFTER.write(tmp_path / "after.json", stage)
    train(tmp_path, "run", *switches, "--ds", str(before), "--max-steps", str(STOP), world_size=1, brisk=False)
    run_dir = train(tmp_path, "run", *switches, "--ds", str(after), world_size=1, brisk=False)
    steps = read_steps(run_dir / "records")
    assert [step.loss for step in steps] == pytest.approx(plain_losses(tmp_path), abs=1e-5)
    rates = [step.learning_rate for step in steps[STOP:]]
    assert rates == pytest.approx([2e-3 * 0.9 ** (number // 3) for number in range(STOP, 12)])
    told = [event for event in read_records(run_dir / "records" / EVENTS_FILE, Event) if event.kind == "resume"]
    changed = " ".join(told[-1].facts["changed"])
    for key in ("optimizer.params.lr", "scheduler.params.gamma", "gradient_accumulation_steps", "gradient_clipping"):
        assert f"{key} is " in changed
    # Each sample once: 4 steps of 4 short ones, 2 of 4 and 6 of 3 long ones, after a chunk that was left out.
    index = read(run_dir / "checkpoints" / "step-12")
    assert index.position.progress("long").tokens == (2 * 4 + 6 * 3) * 64
    assert index.position.progress("short").tokens == 4 * 4 * 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return train(folder, "run", "--max-steps", "2", "--set", "checkpoints.every_steps=1", world_size=1)


def resumed(run_dir: Path, folder: Path, *switches: str, world_size: int = 1) -> Ended:
    words = ["--config", str(mini_config(folder)), "--run-dir", str(run_dir), "--max-steps", "3", *switches]
    return run_ranks(["-m", "dist_trainer", "train", *words], cwd=folder, world_size=world_size)


def test_another_kind_of_run_is_refused_before_anything_is_made(made: Path, tmp_path: Path) -> None:
    ended = resumed(tmp_path / "other", tmp_path, "--resume", str(made), "--set", "model.num_layers=3")
    assert ended.status == 2, ended.output
    assert "was made by another kind of run" in ended.output and "this run: model.num_layers" in ended.output
    assert "Traceback" not in ended.output
    assert not (tmp_path / "other").exists()


def flipped(run_dir: Path) -> Path:
    """Flips a bit in the middle of the newest checkpoint."""
    file = run_dir / "checkpoints" / "step-2" / data_file_name(0)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file


def test_one_flipped_bit_is_found_and_the_newest_whole_checkpoint_is_taken_with_a_word(
    made: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(made, run_dir)
    flipped(run_dir)
    ended = resumed(run_dir, tmp_path, world_size=2)
    assert ended.status == 0, ended.output
    assert "rank-00000.safetensors is not as it was written" in ended.output
    assert "step-1, the newest that is whole, is resumed from" in ended.output
    assert "resumed from" in ended.output and "at step 1" in ended.output
    assert [step.step for step in read_steps(run_dir / "records")] == [1, 2, 3]


def test_the_same_one_is_refused_where_it_is_named(made: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(made, run_dir)
    file = flipped(run_dir)
    ended = resumed(run_dir, tmp_path, "--resume", str(file.parent))
    assert ended.status == 2, ended.output
    assert ended.output.count("dist_trainer: error: ") == 1
    assert "rank-00000.safetensors is not as it was written" in ended.output
    assert "step-1 beside it is whole" in ended.output
    assert "Traceback" not in ended.output
