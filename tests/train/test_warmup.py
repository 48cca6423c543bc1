"""What DeepSpeed's schedules give the first updates, and that those of the shipped files count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime import lr_schedules

from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.deepspeed.rates import idle_start, peak_rate
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve
from dist_trainer.train import warmup

SHIPPED = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))


def rates(config: dict[str, Any], num_updates: int, *, begin: bool = True) -> list[float]:
    """The learning rate of the first updates, by the real schedule over the optimizer's rate."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], **{"lr": 1e-3, **config.get("optimizer", {"params": {}})["params"]})
    block = config.get("scheduler")
    scheduler = None if block is None else getattr(lr_schedules, block["type"])(optimizer, **block["params"])
    if begin:
        warmup.begin(scheduler)
    used = []
    for _ in range(num_updates):
        used.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return used


def of(kind: str, **params: Any) -> dict[str, Any]:
    return {"scheduler": {"type": kind, "params": params}}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_first_update_of_every_shipped_file_counts(path: Path) -> None:
    resolved = resolve(Request(ds=str(path)), world_size=1, device=ANY_DEVICE).deepspeed
    config = {**resolved, "optimizer": {"params": {"lr": resolved["optimizer"]["params"].get("lr", 1e-3)}}}
    first, *_, last = rates(config, 120)
    assert first > 0
    peak = peak_rate(resolved)
    assert peak == pytest.approx(6e-4)
    if resolved.get("scheduler", {}).get("type", "").startswith("Warmup"):
        assert first == pytest.approx(peak / 100)
        assert last == pytest.approx(peak, rel=1e-2)
    assert idle_start(resolved) is None


def test_a_warm_up_gives_its_lowest_rate_twice() -> None:
    ramp = of("WarmupLR", warmup_min_lr=1e-4, warmup_num_steps=3, warmup_type="linear")
    assert rates(ramp, 5) == pytest.approx([1e-4, 1e-4, 4e-4, 7e-4, 1e-3])


@pytest.mark.parametrize(
    "config",
    [
        of("WarmupLR", warmup_num_steps=5),
        of("WarmupLR", warmup_num_steps=5, warmup_type="linear"),
        of("WarmupDecayLR", total_num_steps=9, warmup_num_steps=5),
        of("WarmupCosineLR", total_num_steps=9, warmup_num_steps=5),
        of("OneCycle", cycle_min_lr=0, cycle_max_lr=1e-3, cycle_momentum=False),
    ],
    ids=lambda config: json.dumps(config["scheduler"]),
)
def test_as_many_updates_have_no_rate_as_is_said(config: dict[str, Any]) -> None:
    start = idle_start(config)
    assert start is not None
    used = rates(config, 4)
    assert used[: start.num_updates] == [0] * start.num_updates
    assert used[start.num_updates] > 0


def test_a_warm_up_with_cosine_decay_begins_at_its_ratio_and_keeps_its_course() -> None:
    cosine = of("WarmupCosineLR", total_num_steps=9, warmup_num_steps=4, warmup_min_ratio=0.2, warmup_type="linear")
    bare, ours = rates(cosine, 9, begin=False), rates(cosine, 9)
    assert bare[0] == 0
    assert ours[0] == pytest.approx(2e-4)
    assert ours[1:] == bare[1:]


def test_a_schedule_that_goes_on_is_left_as_it_is() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = lr_schedules.WarmupCosineLR(optimizer, total_num_steps=9, warmup_num_steps=2, warmup_min_ratio=0.2)
    for _ in range(4):
        scheduler.step()
    before = optimizer.param_groups[0]["lr"]
    warmup.begin(scheduler)
    assert (optimizer.param_groups[0]["lr"], scheduler.last_batch_iteration) == (before, 3)
    warmup.begin(None)
