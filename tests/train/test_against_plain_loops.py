"""Every stage, precision and optimizer that a JSON may ask for trains as a plain PyTorch loop does, resumed too.

Optimizers that torch lacks are held against themselves at another stage.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from one_rank import Trained, batches, build, load, one_rank, plain_losses, save

from dist_trainer.checkpoints.index import Made
from dist_trainer.checkpoints.position import Position, Progress
from dist_trainer.config.deepspeed import params
from dist_trainer.config.request import Precision
from dist_trainer.train.step import train_step

pytestmark = pytest.mark.integration

STAGES = (0, 1, 2, 3)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3, "fp16": 1e-3}
NUM_STEPS, SAVED_STEP = 10, 5
POSITION = Position(SAVED_STEP, {"only": Progress(SAVED_STEP)})
RANK = Path(__file__).with_name("agreeing_rank.py")

ADAM = {"lr": 0.003, "betas": [0.9, 0.95], "weight_decay": 0.1}
MUON = {**ADAM, "momentum": 0.95, "ns_method": "standard"}
OPTIMIZERS: Mapping[str, tuple[type[torch.optim.Optimizer], str, dict[str, Any]]] = {
    "AdamW": (torch.optim.AdamW, "AdamW", {**ADAM, "torch_adam": True}),
    "fused AdamW": (torch.optim.AdamW, "AdamW", {**ADAM, "torch_adam": True, "fused": True}),
    "Adam": (torch.optim.Adam, "Adam", {**ADAM, "torch_adam": True, "adam_w_mode": False}),
    "AdamW without decay": (torch.optim.AdamW, "AdamW", {**ADAM, "torch_adam": True, "weight_decay": 0.0}),
    "DeepSpeed's AdamW": (torch.optim.AdamW, "AdamW", ADAM),
    "DeepSpeed's Adam": (torch.optim.Adam, "Adam", {**ADAM, "adam_w_mode": False}),
    "Adagrad": (torch.optim.Adagrad, "Adagrad", {"lr": 0.003, "weight_decay": 0.1}),
    "SGD": (torch.optim.SGD, "SGD", {"lr": 0.03, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    "ASGD": (torch.optim.ASGD, "ASGD", {"lr": 0.03, "weight_decay": 0.1}),
    "Adadelta": (torch.optim.Adadelta, "Adadelta", {"lr": 1.0, "weight_decay": 0.1}),
    "Adafactor": (torch.optim.Adafactor, "Adafactor", {"lr": 0.03, "weight_decay": 0.1}),
    "Adamax": (torch.optim.Adamax, "Adamax", {"lr": 0.003, "weight_decay": 0.1}),
    "NAdam": (torch.optim.NAdam, "NAdam", {"lr": 0.003, "weight_decay": 0.1}),
    "RAdam": (torch.optim.RAdam, "RAdam", {"lr": 0.003, "weight_decay": 0.1}),
    "RMSprop": (torch.optim.RMSprop, "RMSprop", {"lr": 0.001, "eps": 0.01, "momentum": 0.5, "weight_decay": 0.1}),
    "Rprop": (torch.optim.Rprop, "Rprop", {"lr": 0.0003}),
}
# Where DeepSpeed builds its own optimizer for the host; torch's run on the host as they are.
OFFLOADED = ("AdamW", "DeepSpeed's AdamW", "DeepSpeed's Adam", "Adagrad", "SGD")
JSON_ONLY = ("torch_adam", "adam_w_mode")


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank():
        yield


def takes(trained: Trained) -> bool:
    """Whether the rules let a JSON ask for it."""
    if trained.optimizer == "Adagrad" and not trained.offload:
        return trained.stage == 0 and trained.precision == "fp32"
    return trained.optimizer != "Adafactor" or trained.stage == 0


def asked() -> Iterator[Any]:
    for name, precision in itertools.product(OPTIMIZERS, PRECISIONS):
        _, kind, given = OPTIMIZERS[name]
        for stage, offload in itertools.product(STAGES, (False, True)):
            trained = Trained(kind, given, stage=stage, precision=precision, offload=offload)
            if takes(trained) and (not offload or (stage and name in OFFLOADED)):
                yield pytest.param(name, trained, id=_id(name, trained))


def _id(name: str, trained: Trained) -> str:
    return f"{name}, {trained.precision}, stage {trained.stage}" + (", offload" if trained.offload else "")


def losses(engine: Any, *, after: int, until: int) -> list[float]:
    data = batches(start=after)
    return [train_step(engine, data, step=step).loss for step in range(after + 1, until + 1)]


def through_and_resumed(trained: Trained, folder: Path) -> tuple[list[float], list[float]]:
    """The losses of a run that saves on its way, and those of one that resumes there."""
    engine = build(trained, folder)
    through = losses(engine, after=0, until=SAVED_STEP)
    made = Made(world_size=1, run={}, deepspeed={}, data={})
    saved = save(engine, folder / "checkpoints", POSITION, made)
    through += losses(engine, after=SAVED_STEP, until=NUM_STEPS)
    engine.destroy()
    engine = build(trained, folder)
    load(engine, saved)
    resumed = losses(engine, after=SAVED_STEP, until=NUM_STEPS)
    engine.destroy()
    return through, resumed


@pytest.mark.parametrize(("name", "trained"), list(asked()))
def test_agrees_with_a_plain_loop(name: str, trained: Trained, tmp_path: Path) -> None:
    optimizer, _, given = OPTIMIZERS[name]
    plain = {key: tuple(value) if key == "betas" else value for key, value in given.items() if key not in JSON_ONLY}
    expected = plain_losses(optimizer, plain, trained, num_steps=NUM_STEPS)
    assert min(expected[1:]) < expected[0], "it trains"
    through, resumed = through_and_resumed(trained, tmp_path)
    assert through == pytest.approx(expected, abs=TOLERANCE[trained.precision])
    assert resumed == pytest.approx(through[SAVED_STEP:], abs=TOLERANCE[trained.precision])


def by_deepspeed_alone() -> Iterator[Any]:
    """Lion and Muon: each stage beside the first that a CPU can run."""
    lion = Trained("Lion", {"lr": 0.0003, "weight_decay": 0.1}, stage=1, offload=True)
    muon = Trained("Muon", MUON, gradient_clipping=0.0)
    for precision in PRECISIONS:
        for stage in STAGES[2:]:
            yield pytest.param(replace(lion, precision=precision), {"stage": stage}, id=f"Lion, {precision}, {stage}")
        for stage, offload in itertools.product(STAGES[1:], (False, True)):
            whole = ("zero_optimization.reduce_scatter=false",) if stage == 3 else ()
            change = {"stage": stage, "offload": offload, "settings": whole}
            yield pytest.param(replace(muon, precision=precision), change, id=f"Muon, {precision}, {change}")


@pytest.mark.parametrize(("first", "change"), list(by_deepspeed_alone()))
def test_agrees_with_itself_at_another_stage(first: Trained, change: dict[str, Any], tmp_path: Path) -> None:
    expected, _ = through_and_resumed(first, tmp_path)
    through, resumed = through_and_resumed(replace(first, **change), tmp_path)
    # Muon orthogonalises in bf16 in any precision.
    tolerance = max(1e-4 if first.optimizer == "Muon" else 0.0, TOLERANCE[first.precision])
    assert through == pytest.approx(expected, abs=tolerance)
    assert resumed == pytest.approx(through[SAVED_STEP:], abs=tolerance)


def test_no_optimizer_is_left_out() -> None:
    seen = {kind for _, kind, _ in OPTIMIZERS.values()} | {"Muon"}
    refused = {"LBFGS", "SparseAdam"}
    assert set(params.TORCH_OPTIMIZERS) == seen | refused


def test_two_ranks_agree_with_a_plain_loop(tmp_path: Path) -> None:
    """Each rank has half of every micro batch, and takes two of them for a step."""
    ended = ranks.run_ranks([str(RANK), str(tmp_path)], cwd=tmp_path, world_size=2)
    assert ended.status == 0, ended.output
    found = json.loads((tmp_path / "losses.json").read_text())
    assert len(found) == len(STAGES) * len(PRECISIONS)
    for precision in PRECISIONS:
        trained = Trained(precision=precision, accumulation=2)
        expected = plain_losses(torch.optim.AdamW, {"lr": 0.003}, trained, num_steps=NUM_STEPS)
        for stage in STAGES:
            assert found[f"{precision} {stage}"] == pytest.approx(expected, abs=TOLERANCE[precision]), stage
