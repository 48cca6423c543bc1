"""What a loaded checkpoint leaves of the settings, with DeepSpeed's own loss scalers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from dist_trainer.train.hyperparameters import Hyperparameters


def adamw(**settings: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], **settings)


def test_the_settings_stay_and_the_moments_and_the_count_of_steps_are_the_checkpoints() -> None:
    theirs, ours = adamw(lr=1e-2, betas=(0.5, 0.6), weight_decay=0.3), adamw(lr=1e-5)
    theirs.param_groups[0]["params"][0].sum().backward()
    theirs.step()
    # ZeRO takes a step as it is built.
    theirs.param_groups[0]["step"], ours.param_groups[0]["step"] = 7, 1
    asked = Hyperparameters.of(ours)
    ours.load_state_dict(theirs.state_dict())
    asked.put_back(ours)
    group = ours.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-5, (0.9, 0.999), 0.01)
    assert group["step"] == 7
    moments = ours.state[group["params"][0]]["exp_avg"]
    assert torch.equal(moments, theirs.state[theirs.param_groups[0]["params"][0]]["exp_avg"])


def with_scaler(scaler: Any, clip_grad: float = 1.0) -> Any:
    return SimpleNamespace(param_groups=[], clip_grad=clip_grad, loss_scaler=scaler)


def dynamic(scale: float, window: int) -> DynamicLossScaler:
    return DynamicLossScaler(scale, window, min_scale=1, delayed_shift=2, consecutive_hysteresis=False)


def test_clipping_is_as_asked_and_a_dynamic_loss_scale_is_the_one_that_was_reached() -> None:
    optimizer = with_scaler(dynamic(65536, 100), clip_grad=0.5)
    asked = Hyperparameters.of(optimizer)
    optimizer.clip_grad, optimizer.loss_scaler = 1.0, dynamic(256, 1000)
    optimizer.loss_scaler.cur_iter = 40
    asked.put_back(optimizer)
    assert optimizer.clip_grad == 0.5
    scaler = optimizer.loss_scaler
    assert (scaler.cur_scale, scaler.cur_iter, scaler.scale_window) == (256, 40, 100)


def test_a_fixed_loss_scale_is_as_asked() -> None:
    optimizer = with_scaler(LossScaler(128))
    asked = Hyperparameters.of(optimizer)
    optimizer.loss_scaler = dynamic(256, 1000)
    asked.put_back(optimizer)
    assert optimizer.loss_scaler.loss_scale == 128
