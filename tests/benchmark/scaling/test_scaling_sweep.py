"""What `--sweep` takes, and refuses."""

from __future__ import annotations

import pytest

from dist_trainer.benchmark.scaling.sweep import check_gpus, in_words, parse
from dist_trainer.errors import UserError


@pytest.mark.parametrize(("text", "worlds"), [("world=1,2,4", (1, 2, 4)), ("world=8, 2", (2, 8))])
def test_worlds_are_read_and_ascend(text: str, worlds: tuple[int, ...]) -> None:
    assert parse(text) == worlds
    assert parse(in_words(worlds)) == worlds


@pytest.mark.parametrize(
    ("text", "problem", "found"),
    [
        ("world=0,1", "not a number of ranks", "0"),
        ("world=1,-2", "not a number of ranks", "-2"),
        ("world=a", "not a number of ranks", "a"),
        ("world=1,", "not a number of ranks", ""),
        ("world=2,2", "a number of ranks said twice", 2),
        ("world=2", "one number of ranks has nothing to be compared with", "world=2"),
        ("foo=1", "this cannot be swept", "foo"),
        ("1,2,4", "this cannot be swept", "1,2,4"),
    ],
)
def test_what_is_no_sweep_is_refused_with_what_is_expected(text: str, problem: str, found: object) -> None:
    with pytest.raises(UserError) as refused:
        parse(text)
    assert (refused.value.problem, refused.value.where, refused.value.found) == (problem, "--sweep", found)
    assert str(refused.value.expected).startswith("world=N,M,...")


def test_more_ranks_than_gpus_are_refused_and_more_than_cores_are_not() -> None:
    check_gpus((1, 2, 4), 4)
    check_gpus((1, 2, 4), 0)
    with pytest.raises(UserError, match="4 ranks need 4 GPUs") as refused:
        check_gpus((1, 2, 4), 2)
    assert refused.value.where == "--sweep" and str(refused.value.found).startswith("2 GPUs")
