"""Every schedule that the table lists, on real optimizers: to its end, and from where a resumed run stands."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dist_trainer.config.deepspeed.keys import Facts
from dist_trainer.config.deepspeed.params import scheduler_table
from dist_trainer.config.deepspeed.resolve import resolve
from dist_trainer.errors import UserError
from dist_trainer.train.schedule import advance, scheduler_of

NUM_STEPS = 12
FACTS = Facts(world_size=1, hidden_size=8, total_steps=NUM_STEPS)
# What a file has to say where the table fills nothing, and what makes each rate differ from the one before.
SAID: dict[str, dict[str, Any]] = {
    "LRRangeTest": {"lr_range_test_step_size": 3},
    "WarmupLR": {"warmup_num_steps": 5, "warmup_max_lr": 1e-2},
    "WarmupDecayLR": {"warmup_num_steps": 5, "warmup_max_lr": 1e-2},
    "WarmupCosineLR": {"warmup_num_steps": 5},
    "OneCycle": {"cycle_first_step_size": 4, "cycle_second_step_size": 5, "decay_step_size": 1, "decay_lr_rate": 0.1},
    "StepLR": {"step_size": 3, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 7]},
    "ConstantLR": {"total_iters": 5},
    "LinearLR": {"total_iters": 5},
    "ExponentialLR": {"gamma": 0.9},
    "CyclicLR": {"base_lr": 1e-4, "step_size_up": 3},
    "CosineAnnealingWarmRestarts": {"T_0": 4},
    "OneCycleLR": {"total_steps": "auto"},
    "PolynomialLR": {"total_iters": "auto", "power": 2.0},
}
# Another value of one key for each.
CHANGED: dict[str, dict[str, Any]] = {
    "LRRangeTest": {"lr_range_test_step_size": 2},
    "OneCycle": {"cycle_max_lr": 5e-3},
    "WarmupLR": {"warmup_num_steps": 9},
    "WarmupDecayLR": {"warmup_num_steps": 9},
    "WarmupCosineLR": {"warmup_num_steps": 9},
    "StepLR": {"gamma": 0.1},
    "MultiStepLR": {"milestones": [3, 4]},
    "ConstantLR": {"factor": 0.5},
    "LinearLR": {"start_factor": 0.9},
    "ExponentialLR": {"gamma": 0.5},
    "CosineAnnealingLR": {"T_max": 20},
    "CyclicLR": {"max_lr": 5e-3},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "OneCycleLR": {"max_lr": 5e-3},
    "PolynomialLR": {"power": 1.0},
}


def config(kind: str, **said: Any) -> dict[str, Any]:
    known = scheduler_table()[kind]
    params = {name: "auto" for name in known.required if known.rows[name].auto is not None}
    raw = {"train_batch_size": 1, "scheduler": {"type": kind, "params": {**params, **SAID.get(kind, {}), **said}}}
    raw["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-3}}
    return resolve(raw, FACTS, source="ds.json")


class Trained:
    """An optimizer of two groups and its scheduler, stepped as the engine steps them."""

    def __init__(self, deepspeed: dict[str, Any], optimizer: str = "AdamW") -> None:
        self.weights = [torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3))]
        lr = deepspeed["optimizer"]["params"]["lr"]
        groups = [{"params": [self.weights[0]]}, {"params": [self.weights[1]], "weight_decay": 0.0}]
        self.optimizer = getattr(torch.optim, optimizer)(groups, lr=lr)
        make = scheduler_of(deepspeed, source="ds.json")
        assert make is not None
        self.scheduler = make(self.optimizer)

    def settings(self) -> list[dict[str, Any]]:
        return [{**group, "params": None} for group in self.optimizer.param_groups]

    def step(self) -> list[dict[str, Any]]:
        """The settings with which the step was taken."""
        before = self.settings()
        sum(weight.sum() for weight in self.weights).backward()  # type: ignore[union-attr]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        return before


def of_every_step(settings: list[list[dict[str, Any]]]) -> list[list[tuple[Any, ...]]]:
    return [[(group["lr"], group.get("betas"), group["weight_decay"]) for group in step] for step in settings]


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "RMSprop", "NAdam"])
@pytest.mark.parametrize("kind", scheduler_table())
def test_it_has_a_rate_for_every_step_of_the_run(kind: str, optimizer: str) -> None:
    trained = Trained(config(kind), optimizer)
    rates = [trained.step()[0]["lr"] for _ in range(NUM_STEPS)]
    assert all(0 <= rate < 1 for rate in rates)
    assert len(set(rates)) > 1


@pytest.mark.parametrize("kind", ["CyclicLR", "OneCycleLR"])
def test_without_momentum_it_runs_when_it_is_not_to_move_it(kind: str) -> None:
    trained = Trained(config(kind, cycle_momentum=False), "Adagrad")
    assert len([trained.step() for _ in range(NUM_STEPS)]) == NUM_STEPS


@pytest.mark.parametrize("kind", scheduler_table())
@pytest.mark.parametrize("stop", [1, 5, NUM_STEPS - 1])
@pytest.mark.parametrize("changed", [False, True])
def test_a_resumed_run_has_the_rates_of_one_that_had_these_settings_from_the_start(
    kind: str, stop: int, changed: bool
) -> None:
    now = config(kind, **(CHANGED[kind] if changed else {}))
    undisturbed = Trained(now)
    expected = [undisturbed.step() for _ in range(NUM_STEPS)][stop:]

    before = Trained(config(kind))
    for _ in range(stop):
        before.step()
    resumed = Trained(now)
    advance(resumed.scheduler, stop)
    assert of_every_step([resumed.step() for _ in range(NUM_STEPS - stop)]) == of_every_step(expected)


def test_what_the_scheduler_itself_refuses_is_the_users_mistake() -> None:
    make = scheduler_of(config("WarmupLR", warmup_max_lr=[1e-3]), source="ds.json")
    assert make is not None
    two_groups = [{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(2)]
    with pytest.raises(UserError) as caught:
        make(torch.optim.AdamW(two_groups))
    assert (caught.value.where, caught.value.key) == ("ds.json", "scheduler.params")


def test_where_the_file_names_none_there_is_none() -> None:
    assert scheduler_of({}, source="ds.json") is None
