"""The search for the smallest change that meets a limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
from advised import a_plan, settings_of

from dist_trainer.config.request import Request, Switches
from dist_trainer.memory.advice import nearest
from dist_trainer.memory.advice.nearest import Change, Setup, TriedPlan

# Each change takes so many MB off 1000.
SAVED: Mapping[str, int] = {"a": 100, "b": 200, "c": 50, "d": 400, "useless": 0, "harmful": -300}


def changes(*names: str, kinds: Mapping[str, str] | None = None) -> list[Change]:
    return [Change((kinds or {}).get(name, name), name, "free", f"--{name}") for name in names]


def trying(limit: int, tried: list[tuple[str, ...]] | None = None) -> Callable[[Sequence[Change]], TriedPlan | None]:
    def try_out(chosen: Sequence[Change]) -> TriedPlan | None:
        if tried is not None:
            tried.append(tuple(change.what for change in chosen))
        if any(change.what == "impossible" for change in chosen):
            return None
        left = 1000 - sum(SAVED[change.what] for change in chosen)
        return TriedPlan(a_plan(left), left <= limit)

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


def test_a_change_that_takes_more_is_left_out_of_those_put_together() -> None:
    assert found(700, "a", "harmful", "c", "b") == "--a --b"


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


@pytest.mark.parametrize(
    ("ds", "loss", "wanted"),
    [
        ("baseline", "full", ["fused", "chunked"]),
        ("baseline", "fused", ["chunked"]),
        ("baseline", "chunked", []),
        ("zero1", "full", ["fused"]),
        ("zero1", "fused", []),
    ],
)
def test_a_loss_that_holds_less_is_a_change_where_there_is_one(ds: str, loss: str, wanted: list[str]) -> None:
    changes_there_are = nearest.changes(Setup(Request("large", ds), 1, 1, 1), settings_of(ds, 1), loss=loss)
    assert [change.typed for change in changes_there_are if change.kind == "loss"] == [
        f"--set model.loss={name}" for name in wanted
    ]


def test_changes_are_put_into_the_request() -> None:
    request = Request("tiny", "zero1", switches=Switches(fused=True), settings=("seed=1",))
    batch = Change("batch", "b", "", "", Switches(micro_batch=1, accumulation=4))
    stage = Change("stage", "s", "", "", settings=("zero_optimization.stage=2",))
    changed = nearest.apply(request, [batch, stage])
    assert changed.switches == Switches(micro_batch=1, accumulation=4, fused=True)
    assert changed.settings == ("seed=1", "zero_optimization.stage=2")
