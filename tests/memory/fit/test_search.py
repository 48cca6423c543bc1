from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ranks

from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.deepspeed import resolve as deepspeed
from dist_trainer.config.request import Request, Switches
from dist_trainer.config.resolve import ResolvedRun, resolve
from dist_trainer.errors import UserError
from dist_trainer.memory.fit import search as fit
from dist_trainer.memory.fit.candidates import Planner
from dist_trainer.memory.fit.choices import NEUTRAL
from dist_trainer.memory.fit.reasons import risk_line
from dist_trainer.memory.fit.show import render
from dist_trainer.memory.plan import needed
from dist_trainer.memory.planner.planner import PlannedDevice, make_plan
from dist_trainer.units import MIB

# No target of its own: the card alone binds.
CARD_BYTES = 760 * MIB


@pytest.fixture(autouse=True, scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def tiny(*settings: str, ds: str = "zero2", world_size: int = 2, batch: int = 64) -> ResolvedRun:
    request = fit.at_batch(Request(ds=ds, settings=settings), batch, world_size)
    return resolve(request, world_size=world_size, device=ANY_DEVICE)


def found(
    num_bytes: int = CARD_BYTES, *settings: str, name: str | None = None, world_size: int = 2, **more: Any
) -> fit.Fit:
    batch = more.pop("global_batch", 64)
    return fit.search(
        tiny(*settings, world_size=world_size, batch=batch),
        world_size=world_size,
        device=PlannedDevice("cuda", name, num_bytes),
        global_batch=batch,
        **more,
    )


@pytest.fixture(scope="module")
def search() -> fit.Fit:
    return found()


def test_what_is_ranked_fits_and_the_cheapest_comes_first(search: fit.Fit) -> None:
    assert search.winner is not None
    assert all(candidate.needed_bytes <= search.limits.num_bytes for candidate in search.ranking)
    keys = [(candidate.risk, candidate.cost.total_s) for candidate in search.ranking]
    assert keys == sorted(keys)
    assert search.winner.risk == NEUTRAL


def test_the_winner_is_what_planning_every_candidate_finds(search: fit.Fit) -> None:
    planner = Planner(tiny(), PlannedDevice("cuda", None, CARD_BYTES), search.limits, 2, 64)
    every = [
        replace(choice, micro_batch=size)
        for choice in fit.choices(tiny().deepspeed, "bf16", Switches())
        for size in (1, 2, 4, 8, 16, 32)
    ]
    assert search.num_candidates == len(every)
    fitting = [choice for choice in every if planner.fits(choice)]
    assert 0 < len(fitting) < len(every)
    assert search.winner is not None
    assert search.winner.choice == min(fitting, key=planner.rank_key)


def test_hundreds_of_candidates_are_judged() -> None:
    many = found(global_batch=512)
    assert many.num_candidates >= 300
    assert many.num_planned < many.num_candidates


def test_each_neighbour_comes_with_its_reason(search: fit.Fit) -> None:
    assert len(search.rejected) >= 5
    text = render(search)
    assert all(f"{label}: {reason}" in text for label, reason in search.rejected)
    reasons = [reason for _, reason in search.rejected]
    assert any("over 95% of the card" in reason and "peak in" in reason for reason in reasons)
    assert any("x the cost" in reason for reason in reasons)


def test_a_band_that_reaches_over_the_limit_is_said(search: fit.Fit) -> None:
    assert "the upper end would be over 95% of the card" in render(search)
    assert "the upper end" not in render(found(10**10))


def test_accumulation_follows_from_the_global_batch(search: fit.Fit) -> None:
    for candidate in search.ranking:
        config = candidate.config
        assert config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 2 == 64


def test_the_winner_is_a_whole_deepspeed_file_with_the_same_plan(search: fit.Fit, tmp_path: Path) -> None:
    assert search.winner is not None
    path = tmp_path / "fitted.json"
    fit.write_config(search.winner, path)
    deepspeed.check(json.loads(path.read_text()), source=str(path))
    resolved = resolve(Request(ds=str(path)), world_size=2, device=ANY_DEVICE)
    assert resolved.train_batch_size == 64
    plan = make_plan(resolved, world_size=2, device=PlannedDevice("cuda"))
    assert needed(plan.worst) == needed(search.winner.rank)
    assert not [line for line in resolved.notices if "schedule" in line]


def test_phases_in_tokens_and_the_schedule_follow_the_global_batch() -> None:
    settings = (
        'phases=[{"name": "all", "sequence_length": 64, "tokens": 409600}]',
        'scheduler={"type": "WarmupCosineLR", "params": {"total_num_steps": "auto", "warmup_num_steps": "auto"}}',
    )
    winner = found(CARD_BYTES, *settings).winner
    assert winner is not None
    assert winner.config["scheduler"]["params"]["total_num_steps"] == 409600 // (64 * 64)


def test_the_target_binds_where_it_is_less_than_the_card() -> None:
    target = found(10**10, 'targets={"baseline_bytes": "1 GB", "target_bytes": "0.75 GB"}')
    assert target.limits.name == "the target"
    assert target.winner is not None
    assert target.winner.needed_bytes <= 750_000_000


def test_where_nothing_fits_the_nearest_is_named_with_what_would_help() -> None:
    nothing = found(450 * MIB, "model.loss=full")
    assert nothing.winner is None
    assert nothing.nearest is not None
    text = render(nothing)
    assert "nothing fits" in text
    assert "over by" in text
    assert "ranks" in text
    assert "model.loss=fused" in text


def test_what_a_setting_may_cost_beyond_time_is_said(search: fit.Fit) -> None:
    winner = search.winner
    assert winner is not None
    assert risk_line(winner) == ""
    sums = replace(winner.choice, precision="bf16", sums_in_fp32=False)
    assert "gradients of 32 micro batches" in risk_line(replace(winner, choice=sums, accumulation=32))
    states = replace(winner.choice, precision="bf16 states", sums_in_fp32=False)
    assert "16-bit master weights" in risk_line(replace(winner, choice=states))


def test_a_card_without_bf16_is_given_fp16() -> None:
    precisions = {candidate.choice.precision for candidate in found(name="t4").ranking}
    assert precisions <= {"fp32", "fp16"}


def test_offload_needs_room_on_the_host(search: fit.Fit) -> None:
    assert all(candidate.choice.offload == "none" for candidate in found(host_bytes=MIB).ranking)
    assert search.winner is not None
    limits = fit.MemoryLimits(10**12, "the card", host_bytes=200, ranks_a_host=2)
    assert limits.hold(replace(search.winner.rank, host_bytes=100))
    assert not limits.hold(replace(search.winner.rank, host_bytes=101))


def test_what_the_user_fixed_stays() -> None:
    fixed = found(switches=Switches(precision="fp32", checkpointing=True, micro_batch=2))
    assert fixed.ranking
    for candidate in fixed.ranking:
        assert candidate.choice.precision == "fp32"
        assert candidate.choice.checkpointing
        assert candidate.choice.micro_batch == 2


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"global_batch": 63}, "do not divide"),
        ({"switches": Switches(precision="fp16")}, "nothing is left"),
    ],
)
def test_a_search_that_cannot_be_is_refused(more: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        found(**more)


def test_a_card_of_unknown_memory_is_refused() -> None:
    with pytest.raises(UserError, match="not known"):
        fit.search(tiny(), world_size=2, device=PlannedDevice("cuda"), global_batch=64)


def test_a_search_from_kept_traces_needs_no_torch(search: fit.Fit) -> None:
    code = f"""
import sys
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve
from dist_trainer.memory.fit import search as fit
from dist_trainer.memory.planner.planner import PlannedDevice
request = fit.at_batch(Request(ds="zero2"), 64, 2)
resolved = resolve(request, world_size=2, device=ANY_DEVICE)
found = fit.search(resolved, world_size=2, device=PlannedDevice("cuda", None, {CARD_BYTES}), global_batch=64)
assert found.winner is not None
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.integration
def test_the_real_engine_trains_with_the_fitted_file(search: fit.Fit, tmp_path: Path) -> None:
    assert search.winner is not None
    path = tmp_path / "fitted.json"
    fit.write_config(search.winner, path)
    batch = ("--micro-batch", "1", "--accumulation", "2")
    one_phase = 'phases=[{"name": "all", "sequence_length": 32, "steps": 2}]'
    run_dir = ranks.train(tmp_path, "fitted", "--ds", str(path), *batch, "--set", one_phase)
    assert len(ranks.losses(run_dir)) == 2
