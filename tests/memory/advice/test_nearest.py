"""The arithmetic behind a refusal, and the search for the smallest change that meets a limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request, Switches
from dist_trainer.config.resolve import resolve
from dist_trainer.memory.advice import nearest, why
from dist_trainer.memory.advice.nearest import Change, Setup, Trial
from dist_trainer.memory.advice.outcome import HostMemory, Standing, device_standing, host_standing, is_good, plan_line
from dist_trainer.memory.advice.outcome import reduction as reduction_of
from dist_trainer.memory.advice.show import add_up, render
from dist_trainer.memory.engines.settings import Settings, read_settings
from dist_trainer.memory.plan import Figure, PhasePlan, Plan, RankPlan
from dist_trainer.units import GB, MIB

LARGE = 774_030_080


def settings_of(ds: str, world_size: int = 2, *settings: str) -> Settings:
    resolved = resolve(Request("large", ds, settings=settings), world_size=world_size, device=ANY_DEVICE)
    return read_settings(resolved.deepspeed, cuda=True)


def a_plan(needed_bytes: int, **changes: Any) -> Plan:
    figure = Figure(needed_bytes, needed_bytes - GB // 2, needed_bytes + GB // 2)
    parts = {"parameters": needed_bytes - 1000, "activations": 1000}
    phase = PhasePlan("step", needed_bytes, parts)
    rank = RankPlan(0, figure, figure, figure, "step", parts, (phase,), host_bytes=0)
    plan = Plan(
        name="large",
        deepspeed="zero1.json",
        device="cuda",
        device_name=None,
        device_bytes=40 * GB,
        target_bytes=10 * GB,
        baseline_bytes=16 * GB,
        world_size=2,
        micro_batch=1,
        accumulation=8,
        sequence_length=1024,
        ranks=(rank,),
        assumptions=(),
        unmodelled=(),
        upper_bounds=(),
    )
    return replace(plan, **changes)


# What is held.


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
        "before its gradients; the target is 10.00 GB: it cannot be met so"
    )
    assert lines[1] == "ZeRO-1 on 1 rank takes nothing off the model states: there is nobody to share them with"
    assert lines[2].startswith("the peak is in step, and most of it is parameters 16.00 GB")


# The search. Each change takes so many MB off 1000.

SAVED: Mapping[str, int] = {"a": 100, "b": 200, "c": 50, "d": 400, "useless": 0}


def changes(*names: str, kinds: Mapping[str, str] | None = None) -> list[Change]:
    return [Change((kinds or {}).get(name, name), name, "free", f"--{name}") for name in names]


def trying(limit: int, tried: list[tuple[str, ...]] | None = None) -> Callable[[Sequence[Change]], Trial | None]:
    def try_out(chosen: Sequence[Change]) -> Trial | None:
        if tried is not None:
            tried.append(tuple(change.what for change in chosen))
        if any(change.what == "impossible" for change in chosen):
            return None
        left = 1000 - sum(SAVED[change.what] for change in chosen)
        return Trial(a_plan(left), left <= limit)

    return try_out


def found(limit: int, *names: str, kinds: Mapping[str, str] | None = None) -> str | None:
    suggestion = nearest.nearest(changes(*names, kinds=kinds), trying(limit), start_bytes=1000)
    return suggestion.typed if suggestion else None


def test_the_cheapest_change_that_is_enough_alone_is_taken() -> None:
    assert found(900, "c", "a", "b", "d") == "--a"
    assert found(600, "c", "a", "b", "d") == "--d"


def test_where_none_is_enough_the_fewest_together_are_taken() -> None:
    assert found(700, "a", "c", "useless", "impossible", "b") == "--a --b"
    assert found(400, "a", "c", "b", "d") == "--b --d"


def test_of_one_kind_only_one_is_taken() -> None:
    assert found(700, "a", "b", "c", kinds={"a": "stage", "b": "stage"}) is None
    assert found(750, "a", "b", "c", kinds={"a": "stage", "b": "stage"}) == "--b --c"


def test_where_nothing_is_enough_nothing_is_suggested_and_trials_are_bounded() -> None:
    tried: list[tuple[str, ...]] = []
    names = ("a", "b", "c", "d", "useless")
    assert nearest.nearest(changes(*names), trying(1, tried), start_bytes=1000) is None
    assert len(tried) <= 3 * len(names)


def test_the_changes_are_those_that_are_still_open() -> None:
    setup = Setup(Request("large", "zero1"), 2, 2, 8)
    kinds = [change.kind for change in nearest.changes(setup, settings_of("zero1"), loss="full")]
    assert kinds == ["stage", "loss", "stage", "ranks", "ranks", "offload", "states"]
    alone = Setup(Request("large", "baseline"), 1, 1, 1)
    kinds = [change.kind for change in nearest.changes(alone, settings_of("baseline", 1), loss="chunked")]
    assert kinds == ["checkpointing", "batch", "precision", "offload", "states"]


def test_changes_are_put_into_the_request() -> None:
    request = Request("tiny", "zero1", switches=Switches(fused=True), settings=("seed=1",))
    batch = Change("batch", "b", "", "", Switches(micro_batch=1, accumulation=4))
    stage = Change("stage", "s", "", "", settings=("zero_optimization.stage=2",))
    changed = nearest.apply(request, [batch, stage])
    assert changed.switches == Switches(micro_batch=1, accumulation=4, fused=True)
    assert changed.settings == ("seed=1", "zero_optimization.stage=2")


# What a plan comes to.


@pytest.mark.parametrize(("needed_gb", "state"), [(39.0, "under"), (39.8, "close"), (40.1, "over")])
def test_a_plan_stands_by_its_figure_and_its_band(needed_gb: float, state: str) -> None:
    standing = device_standing(a_plan(round(needed_gb * GB)))
    assert isinstance(standing, Standing)
    assert standing.state == state


def test_the_ranks_of_a_host_share_its_memory() -> None:
    host = HostMemory(16 * GB, 2)
    on_cpu = a_plan(7 * GB, device="cpu")
    assert device_standing(on_cpu) is None
    assert is_good(on_cpu, host)
    assert not is_good(a_plan(9 * GB, device="cpu"), host)
    # Nothing is offloaded.
    assert host_standing(a_plan(39 * GB), host) is None


def test_a_plan_in_one_line() -> None:
    assert plan_line(a_plan(8_400_000_000), None) == (
        "8.40 GB a GPU planned (peak in step), of 40.00 GB; target 10.00 GB: met"
    )
    assert plan_line(a_plan(11 * GB, device_bytes=None), None).endswith("(peak in step); target 10.00 GB: missed")
    assert reduction_of(a_plan(8 * GB)) == 0.5


def test_rounded_parts_add_up_to_the_rounded_total() -> None:
    parts = {"a": 1_400_000, "b": 1_400_000, "c": 1_400_000}
    assert sum(add_up(parts, 10**6).values()) == round(sum(parts.values()) / 10**6) == 4
    assert add_up({"a": 5 * MIB}, MIB) == {"a": 5}


def test_what_is_not_modelled_is_never_passed_over() -> None:
    plan = a_plan(8 * GB, unmodelled=("pipeline: stages",), upper_bounds=("compile: less",), assumptions=("NCCL: 1",))
    text = render(plan, notices=["bf16: fp16 runs instead"], advice=["nearest    this"])
    for line in ("  pipeline: stages", "  compile: less", "  NCCL: 1", "  bf16: fp16 runs instead", "nearest    this"):
        assert line in text.splitlines()
