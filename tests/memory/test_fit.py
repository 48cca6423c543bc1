from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.config import deepspeed
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.resolve import Request, ResolvedRun, resolve
from dist_trainer.errors import UserError
from dist_trainer.memory import fit
from dist_trainer.memory.cost import estimate
from dist_trainer.memory.gpus import find_gpu, has_bf16
from dist_trainer.memory.plan import needed
from dist_trainer.memory.planner import PlannedDevice, make_plan, trace_spec
from dist_trainer.memory.settings import read_settings
from dist_trainer.memory.tracer import trace
from dist_trainer.units import GB, MIB

# No target of its own: the card alone binds.
CARD_BYTES = 700 * MIB


@pytest.fixture(autouse=True, scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def tiny(world_size: int = 2, *settings: str) -> ResolvedRun:
    return resolve(Request(ds="zero2", settings=settings), world_size=world_size, device=ANY_DEVICE)


def found(num_bytes: int = CARD_BYTES, world_size: int = 2, global_batch: int = 64, **more: Any) -> fit.Fit:
    device = PlannedDevice("cuda", None, num_bytes)
    return fit.search(tiny(world_size), world_size=world_size, device=device, global_batch=global_batch, **more)


@pytest.fixture(scope="module")
def search() -> fit.Fit:
    return found()


def test_what_is_ranked_fits_and_the_cheapest_comes_first(search: fit.Fit) -> None:
    assert search.winner is not None
    assert all(candidate.needed_bytes <= CARD_BYTES for candidate in search.ranking)
    neutral = [c.cost.total_s for c in search.ranking if c.choice.precision != "bf16 states"]
    assert neutral == sorted(neutral)
    assert search.winner.choice.precision != "bf16 states"


def test_hundreds_of_candidates_are_judged() -> None:
    assert found(global_batch=512).num_candidates >= 300


def test_each_neighbour_comes_with_its_reason(search: fit.Fit) -> None:
    assert len(search.rejected) >= 4
    text = fit.render(search)
    assert all(label in text and reason in text for label, reason in search.rejected)


def test_accumulation_follows_from_the_global_batch(search: fit.Fit) -> None:
    for candidate in search.ranking:
        config = candidate.config
        assert config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 2 == 64


def test_the_winner_is_a_whole_deepspeed_file_that_is_planned_alike(search: fit.Fit, tmp_path: Path) -> None:
    assert search.winner is not None
    path = tmp_path / "fitted.json"
    fit.write_config(search.winner, path)
    deepspeed.check(json.loads(path.read_text()), source=str(path))
    resolved = resolve(Request(ds=str(path)), world_size=2, device=ANY_DEVICE)
    assert resolved.train_batch_size == 64
    plan = make_plan(resolved, world_size=2, device=PlannedDevice("cuda"))
    assert needed(plan.worst).num_bytes == pytest.approx(search.winner.needed_bytes, rel=0.02)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_candidate_is_a_file_that_deepspeed_takes(stage: int) -> None:
    for choice in fit._choices(tiny(), "bf16"):
        if choice.stage == stage:
            config = fit.configure(tiny().deepspeed, choice, accumulation=4, world_size=2)
            deepspeed.check(config, source="candidate")


def test_where_nothing_fits_the_nearest_is_named() -> None:
    nothing = found(450 * MIB)
    assert nothing.winner is None
    assert nothing.nearest is not None
    assert "over by" in fit.render(nothing)


def test_a_card_without_bf16_is_given_fp16() -> None:
    precisions = {candidate.choice.precision for candidate in found(has_bf16=False).ranking}
    assert precisions <= {"fp32", "fp16"}


def test_offload_needs_room_on_the_host() -> None:
    assert all(candidate.choice.offload == "none" for candidate in found(host_bytes=MIB).ranking)


def test_a_global_batch_that_the_ranks_do_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="do not divide"):
        found(global_batch=63)


def test_a_trace_scales_to_any_micro_batch() -> None:
    for size in (1, 3):
        resolved = tiny(1, f"train_micro_batch_size_per_gpu={size}", "model.dropout=0.1")
        settings = read_settings(resolved.deepspeed, cuda=True)
        spec = trace_spec(resolved, settings, sequence_length=64, cuda=True)
        probe = trace(fit.replace(spec, micro_batch=fit.PROBE))
        assert fit.scaled(probe, size) == trace(spec)


def test_recomputation_communication_and_offload_cost_time() -> None:
    def cost(*settings: str, world_size: int = 2, ds: str = "zero2") -> Any:
        request = Request(ds=ds, settings=settings)
        read = read_settings(resolve(request, world_size=world_size, device=ANY_DEVICE).deepspeed, cuda=True)
        return estimate(read, num_parameters=10**8, num_layers=12, sequence_length=1024, world_size=world_size)

    assert cost(ds="bf16").recompute_s == 0
    assert cost().recompute_s == pytest.approx(cost().compute_s / 3)
    assert cost(world_size=1).communication_s == 0
    assert cost(ds="zero1").communication_s < cost(ds="zero2").communication_s < cost(ds="zero3").communication_s
    assert cost(ds="zero2_offload").offload_s > cost().offload_s == 0


@pytest.mark.parametrize("name", ["rtx3090", "RTX 3090", "NVIDIA GeForce RTX 3090", "rtx-3090"])
def test_a_card_is_found_in_any_spelling(name: str) -> None:
    assert find_gpu(name) == ("rtx3090", 24576 * MIB)


def test_an_unknown_card_is_refused_with_its_neighbours() -> None:
    with pytest.raises(UserError) as error:
        find_gpu("a100")
    assert "a100-40g" in str(error.value)
    assert find_gpu("a100-40g").num_bytes > 40 * GB


def test_cards_before_ampere_have_no_bf16() -> None:
    assert [has_bf16(name) for name in ("t4", "V100-32G", "rtx2080ti", "rtx3090", "h100", None)] == [False] * 3 + [
        True
    ] * 3
