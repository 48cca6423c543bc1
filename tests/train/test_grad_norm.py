"""The norm of the gradients is torch's, whatever their dtype, and says by itself that one of them is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from one_rank import Trained, batches, build, one_rank

from dist_trainer.train import grad_norm
from dist_trainer.train.grad_norm import norm_of
from dist_trainer.train.step import train_step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_taken_in_fp32_part_by_part(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grad_norm, "_ELEMENTS", 7)
    torch.manual_seed(0)
    tensors = [torch.randn(shape).to(dtype) for shape in ((5, 10), (3,), (7,))]
    exact = torch.cat([tensor.double().reshape(-1) for tensor in tensors]).norm()
    norm = norm_of(tensors)
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm.double(), exact, rtol=1e-6, atol=0)


def test_of_no_gradients_it_is_zero() -> None:
    assert norm_of([]) == 0


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    with one_rank():
        yield


def weights(engine: Any) -> list[torch.Tensor]:
    """The weights after the engine is done with them; at stage 3 on one rank the partition is all of it."""
    return [getattr(weight, "ds_tensor", weight).detach().clone() for weight in engine.module.parameters()]


@pytest.mark.integration
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped(stage: int, precision: Any, tmp_path: Path) -> None:
    engine = build(Trained(stage=stage, precision=precision), tmp_path)
    data = batches()
    train_step(engine, data, step=1)
    before = weights(engine)
    weight = engine.module.get_parameter("final_norm.bias")
    broken = weight.register_hook(lambda gradient: gradient * torch.inf)
    train_step(engine, data, step=2)
    assert all(torch.equal(was, now) for was, now in zip(before, weights(engine), strict=True))
    broken.remove()
    train_step(engine, data, step=3)
    assert not all(torch.equal(was, now) for was, now in zip(before, weights(engine), strict=True))
    engine.destroy()


@pytest.mark.integration
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_it_is_that_of_the_fp32_engine(stage: int, tmp_path: Path) -> None:
    found = []
    for precision, at in (("fp32", 0), ("bf16", stage)):
        engine = build(Trained(stage=at, precision=precision), tmp_path)  # type: ignore[arg-type]
        found.append(train_step(engine, batches(), step=1).grad_norm)
        engine.destroy()
    assert found[1] == pytest.approx(found[0], rel=2e-2)
