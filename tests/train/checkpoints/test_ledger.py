"""Real runs, stopped at random and continued on other ranks, with a ledger of what their loaders really handed out."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from ranks import TORCHRUN, mini_config, run

from dist_trainer.checkpoints.index import read
from dist_trainer.data.sampler import Order

pytestmark = pytest.mark.integration

RANK = str(Path(__file__).with_name("ledger_rank.py"))
LENGTH = 16
# 50 windows and batches of 12: an epoch ends within a batch.
NUM_WINDOWS = 50
GLOBAL_BATCH = 12
EVERY_STEPS = 3
NUM_STEPS = 15


@dataclass(frozen=True)
class Split:
    world_size: int
    micro_batch: int
    accumulation: int


def write_data(folder: Path) -> Path:
    """A window is known by its tokens: each token is its own place in the file."""
    path = folder / "train.bin"
    np.arange(NUM_WINDOWS * LENGTH + 1, dtype="<u2").tofile(path)
    return path


def train(folder: Path, number: int, split: Split, max_steps: int) -> list[list[int]]:
    """The windows of each step that a start took, in the order of the samples. No save at its end: steps are lost."""
    ledger = folder / f"ledger-{number}"
    ledger.mkdir()
    phases = json.dumps([{"name": "only", "sequence_length": LENGTH, "steps": NUM_STEPS}])
    settings = (
        f"phases={phases}",
        f"data.source={folder / 'train.bin'}",
        f"train_micro_batch_size_per_gpu={split.micro_batch}",
        f"gradient_accumulation_steps={split.accumulation}",
        f"checkpoints.every_steps={EVERY_STEPS}",
    )
    words = ["--config", str(mini_config(folder)), "--run-dir", str(folder / "run"), "--max-steps", str(max_steps)]
    words += [word for setting in settings for word in ("--set", setting)]
    command = [*TORCHRUN, str(split.world_size), RANK, str(ledger), "train", *words]
    ended = run(command, cwd=folder)
    assert ended.status == 0, ended.output
    ranks = [
        [json.loads(line) for line in (ledger / f"rank-{rank}.jsonl").read_text().splitlines()]
        for rank in range(split.world_size)
    ]
    micro_batches = [batch for together in zip(*ranks, strict=True) for batch in together]
    in_step = split.accumulation * split.world_size
    steps = [micro_batches[first : first + in_step] for first in range(0, len(micro_batches), in_step)]
    return [[window for batch in step for window in batch] for step in steps]


def saved_step(folder: Path) -> int:
    return read(folder / "run" / "checkpoints" / (folder / "run" / "checkpoints" / "latest").read_text()).position.step


def test_no_sample_is_skipped_or_repeated_over_all_starts(tmp_path: Path) -> None:
    """On 1, 2 and 1 ranks again, with other micro batches and accumulation, within an epoch and over its end."""
    write_data(tmp_path)
    # Stopped in the first epoch, in the second, and at the end of the run, in the fourth.
    random_ = random.Random(3)
    stops = [random_.choice((3, 4)), random_.choice((7, 8, 10, 11)), NUM_STEPS]
    splits = [Split(1, 2, 6), Split(2, 3, 2), Split(1, 4, 3)]
    ledger: list[list[int]] = []
    for number, (split, stop) in enumerate(zip(splits, stops, strict=True)):
        resumed = len(ledger)
        steps = train(tmp_path, number, split, stop)
        assert len(steps) == stop - resumed, "a batch for each step, and none for what was not trained"
        saved = saved_step(tmp_path)
        ledger += steps[: saved - resumed]
    order = Order(NUM_WINDOWS * LENGTH + 1, LENGTH, 64, 7)
    windows = [window for step in ledger for window in step]
    assert len(windows) == NUM_STEPS * GLOBAL_BATCH
    for first in range(0, len(windows), NUM_WINDOWS):
        epoch = Counter(windows[first : first + NUM_WINDOWS])
        assert max(epoch.values()) == 1
        assert first + NUM_WINDOWS > len(windows) or set(epoch) == set(range(NUM_WINDOWS))
    assert windows == order.windows(np.arange(len(windows))).tolist()
