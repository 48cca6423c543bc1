"""Stage 0 in 16-bit updates a few parameters at a time, to the same bits as DeepSpeed does all at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from one_rank import Trained, batches, build, one_rank

from dist_trainer.memory.engines import partitions
from dist_trainer.memory.engines.partitions import parts_of
from dist_trainer.train import engine as engines
from dist_trainer.train.step import train_step

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank():
        yield


def weights_after(trained: Trained, folder: Path, num_steps: int = 4) -> tuple[list[float], dict[str, Any]]:
    engine = build(trained, folder)
    data = batches()
    losses = [train_step(engine, data, step=step).loss for step in range(1, num_steps + 1)]
    found = {name: weight.detach().clone() for name, weight in engine.module.named_parameters()}
    engine.destroy()
    return losses, found


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
@pytest.mark.parametrize("elements", [1, 2000, 2**20])
def test_the_numbers_are_those_of_deepspeeds_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any, optimizer: str, elements: int
) -> None:
    params: dict[str, Any] = {"lr": 0.003, **({"torch_adam": True} if optimizer == "AdamW" else {"momentum": 0.9})}
    trained = Trained(optimizer, params, precision=precision, accumulation=2)
    monkeypatch.setattr(partitions, "PART_ELEMENTS", elements)
    in_parts = weights_after(trained, tmp_path)
    monkeypatch.setattr(engines, "update_in_parts", lambda engine: None)
    at_once = weights_after(trained, tmp_path)
    assert in_parts[0] == at_once[0]
    assert all(torch.equal(in_parts[1][name], weight) for name, weight in at_once[1].items())


def test_no_gradient_of_the_whole_model_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "PART_ELEMENTS", 1)
    engine = build(Trained(precision="bf16"), tmp_path)
    held = []
    step = engine.optimizer.optimizer.step

    def counted() -> Any:
        masters = [master for group in engine.optimizer.fp32_groups for master in group]
        held.append(sum(master.grad is not None for master in masters))
        return step()

    engine.optimizer.optimizer.step = counted
    train_step(engine, batches(), step=1)
    assert set(held) == {1}
    assert len(held) == len(list(engine.module.parameters()))
    engine.destroy()


def test_gradients_that_are_not_finite_change_nothing(tmp_path: Path) -> None:
    engine = build(Trained(precision="fp16"), tmp_path)
    engine.backward(engine(*next(batches())))
    before = {name: weight.detach().clone() for name, weight in engine.module.named_parameters()}
    next(engine.module.parameters()).grad[0] = float("inf")
    scale = engine.optimizer.loss_scale
    assert engine.optimizer.step() is True
    assert engine.optimizer.loss_scale < scale
    assert all(torch.equal(before[name], weight) for name, weight in engine.module.named_parameters())
    assert all(group["params"] for group in engine.optimizer.optimizer.param_groups)
    engine.destroy()


@pytest.mark.parametrize(
    ("numels", "sizes"),
    [([], []), ([5], [1]), ([2**20, 1], [1, 1]), ([1, 2**21, 3, 4], [1, 1, 2]), ([2**19, 2**19, 1], [2, 1])],
)
def test_parts_are_of_so_many_elements_and_a_larger_parameter_is_one(numels: list[int], sizes: list[int]) -> None:
    assert [len(numels[part]) for part in parts_of(numels)] == sizes
