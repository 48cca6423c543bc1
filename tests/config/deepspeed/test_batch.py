from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from deepspeed.runtime import config as real
from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.config.deepspeed.batch import Batch, derive, nearest
from dist_trainer.config.deepspeed.resolve import Facts, resolve
from dist_trainer.errors import UserError

TRAIN = "train_batch_size"
MICRO = "train_micro_batch_size_per_gpu"
ACCUMULATION = "gradient_accumulation_steps"


def facts(world_size: int, **more: Any) -> Facts:
    return Facts(world_size=world_size, hidden_size=64, total_steps=100, **more)


def sizes(raw: dict[str, Any], world_size: int = 1, **more: Any) -> tuple[int, int, int]:
    resolved = resolve(raw, facts(world_size, **more), source="ds.json")
    return resolved[TRAIN], resolved[MICRO], resolved[ACCUMULATION]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({TRAIN: 32, MICRO: 4, ACCUMULATION: 2}, (32, 4, 2)),
        ({TRAIN: 32, MICRO: 4}, (32, 4, 2)),
        ({TRAIN: 32, ACCUMULATION: 4}, (32, 2, 4)),
        ({MICRO: 4, ACCUMULATION: 2}, (32, 4, 2)),
        ({TRAIN: 32}, (32, 8, 1)),
        ({MICRO: 4}, (16, 4, 1)),
        ({TRAIN: "auto", MICRO: "auto", ACCUMULATION: "auto"}, (4, 1, 1)),
        ({TRAIN: "auto"}, (4, 1, 1)),
        ({MICRO: "auto", ACCUMULATION: 8}, (32, 1, 8)),
        ({TRAIN: "auto", MICRO: 2, ACCUMULATION: "auto"}, (8, 2, 1)),
        ({TRAIN: 32, MICRO: "auto", ACCUMULATION: "auto"}, (32, 1, 8)),
        ({TRAIN: 32, MICRO: "auto"}, (32, 1, 8)),
        ({TRAIN: 32, MICRO: "auto", ACCUMULATION: 2}, (32, 4, 2)),
        ({TRAIN: 32, MICRO: 2, ACCUMULATION: "auto"}, (32, 2, 4)),
        ({TRAIN: 32.0, MICRO: 4.0}, (32, 4, 2)),
    ],
)
def test_what_is_missing_is_derived_on_four_ranks(raw: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert sizes(raw, 4) == expected
    assert all(type(size) is int for size in sizes(raw, 4))


def test_the_defaults_an_auto_stands_for_are_facts() -> None:
    raw = {TRAIN: "auto", MICRO: "auto", ACCUMULATION: "auto"}
    assert sizes(raw, 2, micro_batch=4, accumulation=8) == (64, 4, 8)


@pytest.mark.parametrize("raw", [{}, {ACCUMULATION: 4}, {ACCUMULATION: "auto"}])
def test_none_given(raw: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="how large a batch") as caught:
        sizes(raw)
    assert (caught.value.where, caught.value.key) == ("ds.json", MICRO)


def test_a_triple_that_does_not_multiply_says_the_arithmetic_and_the_nearest_that_do() -> None:
    with pytest.raises(UserError) as caught:
        sizes({TRAIN: 100, MICRO: 4, ACCUMULATION: 8}, 2)
    assert str(caught.value) == "\n".join(
        [
            "train_batch_size is not micro batch x accumulation x world size",
            "  where:    ds.json: train_batch_size",
            "  found:    100",
            "  expected: 4 x 8 x 2, which is 64",
            "  do:       make it one of these (batch = micro x accumulation x world size): "
            "100 = 5 x 10 x 2; 100 = 10 x 5 x 2; 64 = 4 x 8 x 2",
        ]
    )


def test_a_batch_the_world_size_does_not_divide() -> None:
    with pytest.raises(UserError) as caught:
        sizes({TRAIN: 32}, 3)
    assert "30 = 10 x 1 x 3; 33 = 11 x 1 x 3" in str(caught.value.hint)
    with pytest.raises(UserError) as caught:
        sizes({TRAIN: 2}, 4)
    assert "4 = 1 x 1 x 4" in str(caught.value.hint)


def test_the_nearest_are_found_at_once_for_a_huge_batch() -> None:
    assert nearest(2_000_000_014, 4, 8, 2)[-1] == Batch(4, 8, 2)


size = st.integers(1, 64)
maybe = st.none() | size


@given(train=st.none() | st.integers(1, 4096), micro=maybe, accumulation=maybe, world=st.integers(1, 16))
def test_derived_sizes_are_deepspeeds_own(
    train: int | None, micro: int | None, accumulation: int | None, world: int
) -> None:
    given_sizes = {TRAIN: train, MICRO: micro, ACCUMULATION: accumulation}
    raw = {key: value for key, value in given_sizes.items() if value is not None}
    communicator = SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: world)
    try:
        ours = derive(raw, facts(world), source="ds.json")
    except UserError:
        ours = None
    with mock.patch.object(real, "dist", communicator):
        try:
            theirs = real.DeepSpeedConfig(raw)
        except AssertionError:
            assert ours is None
            return
    assert ours is not None
    assert ours.train == theirs.train_batch_size
    assert ours.micro == theirs.train_micro_batch_size_per_gpu
    assert ours.accumulation == theirs.gradient_accumulation_steps


asked = st.none() | st.just("auto") | size


@given(train=asked, micro=asked, accumulation=asked, world=st.integers(1, 8))
def test_whatever_resolves_multiplies_and_keeps_what_was_said(
    train: Any, micro: Any, accumulation: Any, world: int
) -> None:
    given_sizes = {TRAIN: train, MICRO: micro, ACCUMULATION: accumulation}
    raw = {key: value for key, value in given_sizes.items() if value is not None}
    try:
        resolved = resolve(raw, facts(world), source="ds.json")
    except UserError:
        return
    assert resolved[TRAIN] == resolved[MICRO] * resolved[ACCUMULATION] * world
    assert {key: resolved[key] for key, value in raw.items() if value != "auto"} == {
        key: value for key, value in raw.items() if value != "auto"
    }


@given(train=st.integers(1, 10**6), micro=size, accumulation=size, world=st.integers(1, 16))
def test_the_nearest_batches_are_whole_and_on_either_side(
    train: int, micro: int, accumulation: int, world: int
) -> None:
    options = nearest(train, micro, accumulation, world)
    assert options
    assert all(min(option.micro, option.accumulation) >= 1 for option in options)
    if train % world == 0:
        assert options[0].train == train
    else:
        assert options[0].train < train + world
