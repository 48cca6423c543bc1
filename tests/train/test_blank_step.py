"""An engine that was just built has trained nothing yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from one_rank import Trained, batches, build, one_rank, plain_losses

from dist_trainer.config.request import Precision
from dist_trainer.train.step import train_step

pytestmark = pytest.mark.integration

FUSED = {"lr": 0.01, "weight_decay": 0.5}
TORCH = {**FUSED, "torch_adam": True}


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank():
        yield


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("params", [TORCH, FUSED], ids=["torch's AdamW", "DeepSpeed's FusedAdam"])
def test_masters_are_the_weights_and_the_optimizer_has_no_states(
    precision: Precision, params: dict[str, object], tmp_path: Path
) -> None:
    engine = build(Trained(params=params, precision=precision), tmp_path)
    (weight, *_), (master, *_) = (
        (groups[0] for groups in (engine.optimizer.fp16_groups, engine.optimizer.fp32_groups))
        if "torch_adam" in params
        else (engine.optimizer.fp16_groups[0], engine.optimizer.fp32_groups_flat)
    )
    first = weight.numel()
    assert torch.equal(master.detach().flatten()[:first], weight.detach().float().flatten())
    assert not engine.basic_optimizer.state and not any(
        "step" in group for group in engine.basic_optimizer.param_groups
    )
    engine.destroy()


def test_the_first_update_is_the_first(tmp_path: Path) -> None:
    """SGD's first momentum is the whole gradient, whatever its dampening; after a step on zeros it would be a part."""
    params = {"lr": 0.3, "momentum": 0.9, "dampening": 0.5}
    trained = Trained("SGD", params, precision="bf16")
    engine = build(trained, tmp_path)
    data = batches()
    losses = [train_step(engine, data, step=step).loss for step in (1, 2)]
    assert losses == pytest.approx(plain_losses(torch.optim.SGD, params, trained, num_steps=2), abs=1e-3)
    engine.destroy()
