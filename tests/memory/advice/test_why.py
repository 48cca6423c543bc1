"""The arithmetic behind a refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from advised import a_plan, settings_of

from dist_trainer.memory.advice import why
from dist_trainer.units import GB

LARGE = 774_030_080


@pytest.mark.parametrize(
    ("ds", "world_size", "settings", "per_parameter"),
    [
        ("baseline", 1, (), 4 + 8),
        ("baseline", 1, ("bf16.enabled=true",), 2 + 4 + 8),
        ("zero1", 1, (), 2 + 4 + 8),
        ("zero1", 2, (), 2 + 12 / 2),
        ("zero2", 4, (), 2 + 12 / 4),
        ("zero3", 8, (), 14 / 8),
        ("zero2_offload", 2, (), 2),
        ("zero3_offload", 2, (), 0),
        ("baseline", 2, ("zero_optimization.stage=1",), 4 + 12 / 2),
        ("zero2", 2, ("optimizer.type=SGD", "optimizer.params={}", "zero_allow_untested_optimizer=true"), 2 + 4 / 2),
    ],
)
def test_the_bytes_a_parameter_follow_from_the_settings(
    ds: str, world_size: int, settings: tuple[str, ...], per_parameter: float
) -> None:
    held = why.held_states(settings_of(ds, world_size, *settings), world_size, with_gradients=False)
    assert held.per_parameter == pytest.approx(per_parameter)


@pytest.mark.parametrize(
    ("stage", "world_size", "share"),
    [(1, 2, 0.375), (1, 4, 0.5625), (2, 2, 0.4375), (2, 8, 14 / 16 * 7 / 8), (3, 2, 0.5), (3, 64, 63 / 64)],
)
def test_what_zero_can_take_off(stage: int, world_size: int, share: float) -> None:
    plain = replace(settings_of("zero1", world_size), stage=stage, grad_accum_dtype="bf16")
    assert why.most_saved(plain, world_size) == pytest.approx(share)


def test_the_arithmetic_is_said_in_full() -> None:
    plan = a_plan(16 * GB, world_size=1)
    lines = list(why.arithmetic(plan, settings_of("zero1", 1), LARGE, limit_bytes=10 * GB, limit_name="the target"))
    assert lines[0] == (
        "16-bit large on one GPU holds 14 bytes a parameter (2 weights + 4 master + 8 moments) x 774.0M = 10.84 GB "
        "before its gradients; the target is 10.00 GB, too little for these settings"
    )
    assert lines[1] == "ZeRO-1 on 1 rank takes nothing off the model states: there is nobody to share them with"
    assert lines[2].startswith("the peak is in step, and most of it is parameters 16.00 GB")


@pytest.mark.parametrize(
    ("world_size", "where"), [(1, "on one rank on a CPU holds"), (2, "on each of 2 ranks on a CPU holds")]
)
def test_on_a_cpu_the_arithmetic_is_of_ranks(world_size: int, where: str) -> None:
    plan = replace(a_plan(16 * GB, world_size=world_size), device="cpu")
    settings = settings_of("zero1", world_size)
    line = next(why.arithmetic(plan, settings, LARGE, limit_bytes=10 * GB, limit_name="the host's memory"))
    assert where in line
