"""Checkpoints as they lie on disk, without an engine's content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dist_trainer.checkpoints import card, find
from dist_trainer.checkpoints.index import DataFacts, Made
from dist_trainer.checkpoints.position import Position
from dist_trainer.config.progress import Progress
from dist_trainer.data.sampler import DataPlace

CONTENT_FILE = "mp_rank_00_model_states.pt"
RUN: dict[str, Any] = {
    "name": "mine",
    "seed": 1,
    "model": {"num_layers": 2, "hidden_size": 8, "num_heads": 2, "vocab_size": 9, "context_length": 16, "dropout": 0.0},
    "data": {"source": "a", "num_workers": None},
    "phases": [
        {"name": "short", "sequence_length": 8, "steps": 9},
        {"name": "long", "sequence_length": 16, "steps": 9},
    ],
    "memory": {"gc_every_steps": 100},
}
DEEPSPEED: dict[str, Any] = {
    "train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-3}},
    "zero_optimization": {"stage": 2},
    "bf16": {"enabled": True},
    "steps_per_print": 10,
}
DATA = DataFacts("a/train.bin", 1000, "f00", "t00")


def made(**changes: Any) -> Made:
    return Made(**{"world_size": 2, "run": RUN, "deepspeed": DEEPSPEED, "data": {"short": DATA}, **changes})


def position(step: int) -> Position:
    return Position(step, {"short": Progress(step, step * 64)}, {"f00/16": DataPlace(0, step * 64, 8)})


def checkpoint(checkpoints_dir: Path, step: int, *, made_by: Made | None = None) -> Path:
    """A whole one, which `latest` names."""
    folder = checkpoints_dir / find.name_of(step)
    folder.mkdir(parents=True)
    (folder / CONTENT_FILE).write_bytes(b"weights")
    (folder / "random-rank-0.pt").write_bytes(b"noise")
    card.write(folder, position(step), made_by or made())
    find.write_latest(checkpoints_dir, step)
    return folder
