"""The engine beside what DeepSpeed's own would be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from dist_trainer.train import engine as engine_module
from dist_trainer.train.step import train_step
from tests.one_rank import Trained, batches, build, one_rank


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank():
        yield


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_rank_without_zero_copies_no_gradients_to_reduce_them(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build(Trained("AdamW", {"lr": 0.001}, precision=precision), tmp_path)
    flattened: list[Any] = []
    monkeypatch.setattr(engine, "allreduce_bucket", lambda *arguments, **named: flattened.append(arguments))
    train_step(engine, batches(), step=1)
    engine.destroy()
    assert flattened == []


@pytest.mark.parametrize(("world_size", "has_zero", "reduces"), [(1, False, False), (1, True, True), (2, False, True)])
def test_several_ranks_and_zero_reduce(
    world_size: int, has_zero: bool, reduces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: world_size)
    engine = SimpleNamespace(zero_optimization=lambda: has_zero, enable_backward_allreduce=True)
    engine_module._reduce_nothing_alone(engine)
    assert engine.enable_backward_allreduce is reduces
