"""What a run says of itself in its first lines."""

from __future__ import annotations

import json
from pathlib import Path

from dist_trainer.cluster.rank import RankInfo
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request, Switches
from dist_trainer.config.resolve import resolve
from dist_trainer.train.opening import opening_lines

ALONE = RankInfo(0, 1, 0, 1, "127.0.0.1", None, "single")


def opening(tmp_path: Path, ds: object, **switches: float) -> list[str]:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(ds))
    request = Request(ds=str(path), switches=Switches(learning_rate=switches.get("learning_rate")))
    resolved = resolve(request, world_size=1, device=ANY_DEVICE)
    return opening_lines(resolved, ALONE, tmp_path, ANY_DEVICE, 1, "fp32")


def test_what_stands_for_an_auto_is_said_with_its_reason(tmp_path: Path) -> None:
    ds = {"train_batch_size": "auto", "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}
    lines = opening(tmp_path, ds)
    assert "filled     train_batch_size = 1 (micro batch x accumulation x world size)" in lines
    assert "filled     optimizer.params.lr = 0.0003 (the rate that the scheduler says, else 3e-4)" in lines


def test_the_rate_in_force_is_said(tmp_path: Path) -> None:
    ds = {"train_batch_size": 1, "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}}}
    (without,) = (line for line in opening(tmp_path, ds) if line.startswith("deepspeed"))
    assert "learning rate 0.001, " in without
    (switched,) = (line for line in opening(tmp_path, ds, learning_rate=2e-4) if line.startswith("deepspeed"))
    assert "learning rate 0.0002, " in switched
