"""One optimizer step: what it asks of the engine, and when it stops the run."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_trainer import blackbox
from dist_trainer.errors import RunError
from dist_trainer.train.step import evaluate, train_step


class Engine:
    """Plays an engine of two micro batches a step that gives the losses it is told."""

    device = torch.device("cpu")
    global_steps = 0

    def __init__(self, *losses: float | Exception) -> None:
        self.losses = list(losses)
        self.calls: list[str] = []

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = self.losses.pop(0)
        if isinstance(loss, Exception):
            raise loss
        return torch.tensor(loss)

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "gradient_accumulation_steps": 2,
            "get_lr": [0.25],
            "zero_optimization": True,
            "fp16_enabled": False,
            "get_global_grad_norm": 1.5,
        }

        def call(*_: object) -> Any:
            self.calls.append(name)
            return answers.get(name)

        return call


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64)


def test_the_loss_is_the_mean_of_the_micro_batches() -> None:
    engine = Engine(1.0, 2.0)
    result = train_step(engine, batches(), step=1)
    assert (result.loss, result.learning_rate, result.grad_norm, result.loss_scale) == (1.5, 0.25, 1.5, None)
    assert engine.calls.count("backward") == engine.calls.count("step") == 2


def add(*of_another: float) -> Callable[[torch.Tensor], None]:
    """An all-reduce with another rank that holds these."""
    return lambda tensor: tensor.copy_(tensor + torch.tensor(of_another, dtype=tensor.dtype).reshape(tensor.shape))


def test_the_black_box_follows_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = blackbox.new_memory()
    box = blackbox.of({blackbox.BLACKBOX_FD: str(descriptor)})
    monkeypatch.setattr(blackbox, "own", lambda: box)

    def now() -> str:
        moment = blackbox.read(descriptor)
        assert moment is not None
        return moment.in_words()

    class Watched(Engine):
        def __call__(self, *batch: torch.Tensor) -> torch.Tensor:
            seen.append(now())
            return super().__call__(*batch)

        def backward(self, _: object) -> None:
            seen.append(now())

        def step(self) -> None:
            seen.append(now())

    def watched() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in batches():
            seen.append(now())
            yield batch

    seen: list[str] = []
    engine = Watched(1.0, 2.0, 3.0)
    train_step(engine, watched(), step=7)
    phases = ("waiting for data", "forward", "backward", "optimizer")
    assert seen == [f"in step 7, micro batch {number}, {phase}" for number in (1, 2) for phase in phases]
    assert now() == "in step 7, after the update"
    evaluate(engine, itertools.islice(watched(), 1))
    assert seen[-1] == "in step 7, evaluation"
    os.close(descriptor)


def test_the_loss_is_that_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_reduce", add(9.0))
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert train_step(Engine(1.0, 2.0), batches(), step=1).loss == 3.0


def test_evaluation_is_over_the_batches_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_reduce", add(8.0, 1.0))
    assert evaluate(Engine(1.0, 3.0), itertools.islice(batches(), 2)) == 4.0


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update(loss: float) -> None:
    engine = Engine(1.0, loss)
    with pytest.raises(RunError, match="the loss of step 7 is not finite"):
        train_step(engine, batches(), step=7)
    assert engine.calls.count("step") == 1, "only the micro batch before the boundary"


def test_running_out_of_memory_says_what_to_try() -> None:
    engine = Engine(1.0, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    with pytest.raises(RunError, match="out of memory in step 3") as caught:
        train_step(engine, batches(), step=3)
    assert "--micro-batch 1" in str(caught.value)


def test_evaluation_averages_and_goes_back_to_training() -> None:
    engine = Engine(1.0, 3.0)
    pairs = iter([next(batches()), next(batches())])
    assert evaluate(engine, pairs) == 2.0
    assert [call for call in engine.calls if call in ("eval", "train")] == ["eval", "train"]
