"""The loss scale of fp16 is in the gradients once, and out of the update once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from one_rank import Trained, batches, build, one_rank, plain_losses

from dist_trainer.train.loss_scale import loss_scale
from dist_trainer.train.step import StepResult, train_step

pytestmark = pytest.mark.integration

STAGES = (0, 1, 2, 3)
# SGD, for Adam divides by the size of the gradients.
SGD = Trained("SGD", {"lr": 0.3}, precision="fp16", gradient_clipping=0.0)


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank():
        yield


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    built: list[Any] = []

    def make(**changed: Any) -> Any:
        built.append(build(Trained(**{**vars(SGD), **changed}), tmp_path))
        return built[-1]

    yield make
    for one in built:
        one.destroy()


def steps(engine: Any, num_steps: int) -> list[StepResult]:
    data = batches()
    return [train_step(engine, data, step=step) for step in range(1, num_steps + 1)]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_update_does_not_depend_on_the_scale(stage: int, accumulation: int, engine: Callable[..., Any]) -> None:
    one, many = (
        steps(engine(stage=stage, accumulation=accumulation, settings=(f"fp16.loss_scale={scale}",)), 4)
        for scale in (1, 1024)
    )
    assert [step.loss for step in many] == pytest.approx([step.loss for step in one], abs=1e-3)
    assert [step.grad_norm for step in many] == pytest.approx([step.grad_norm for step in one], rel=1e-2)
    assert many[-1].loss < many[0].loss - 0.1, "it trains"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("optimizer", "params"), [("SGD", {"lr": 0.3}), ("AdamW", {"lr": 0.003})])
def test_the_step_in_which_the_scale_grows_is_a_whole_step(
    stage: int, optimizer: str, params: dict[str, object], engine: Callable[..., Any]
) -> None:
    growing, standing = (
        steps(engine(optimizer=optimizer, params=params, stage=stage, settings=settings), 8)
        for settings in (("fp16.initial_scale_power=4", "fp16.loss_scale_window=2"), ("fp16.loss_scale=16",))
    )
    assert growing[-1].loss_scale is not None and growing[-1].loss_scale > 16
    assert [step.loss for step in growing] == pytest.approx([step.loss for step in standing], abs=1e-3)
    assert [step.grad_norm for step in growing] == pytest.approx([step.grad_norm for step in standing], rel=1e-2)


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_that_overflows_changes_nothing_but_the_scale(stage: int, engine: Callable[..., Any]) -> None:
    running = engine(stage=stage, settings=("fp16.initial_scale_power=32", "fp16.hysteresis=1"))
    before = [parameter.detach().clone() for parameter in running.module.parameters()]
    data = batches()
    (first,) = [train_step(running, data, step=1)]
    assert running.skipped_steps == 1
    assert first.loss_scale == loss_scale(running) == 2.0**31
    if stage < 3:
        assert all(torch.equal(old, new) for old, new in zip(before, running.module.parameters(), strict=True))


def test_clipping_sees_the_gradients_without_the_scale(engine: Callable[..., Any]) -> None:
    running = engine(gradient_clipping=0.5)
    trained = Trained(**{**vars(SGD), "gradient_clipping": 0.5})
    expected = plain_losses(torch.optim.SGD, SGD.params, trained, num_steps=4)
    assert [step.loss for step in steps(running, 4)] == pytest.approx(expected, abs=1e-3)


def test_other_precisions_have_no_scale(engine: Callable[..., Any]) -> None:
    assert steps(engine(precision="bf16"), 1)[0].loss_scale is None
