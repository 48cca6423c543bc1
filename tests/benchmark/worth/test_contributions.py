from __future__ import annotations

import math
from typing import Any

import pytest
from worth_runs import CELLS, results

from dist_trainer.benchmark.worth.cells import ALL, BASELINE, OPTIMISATIONS
from dist_trainer.benchmark.worth.contributions import Contribution, Contributions
from dist_trainer.benchmark.worth.ratios import Estimate


def contributions(**how: Any) -> Contributions:
    return results(**how).contributions


def by_name(each: object) -> dict[str, Contribution]:
    assert isinstance(each, tuple)
    return {one.optimisation: one for one in each}


def value(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.value


def test_alone_is_to_the_baseline_and_in_all_is_to_all_without_it() -> None:
    found = by_name(contributions(noise=0.0).each)
    assert list(found) == [one.name for one in OPTIMISATIONS]
    bf16 = found["bf16"]
    assert (value(bf16.alone), value(bf16.in_all)) == (pytest.approx(1.5), pytest.approx(1.6))
    assert value(bf16.share) == pytest.approx(math.sqrt(1.5 * 1.6))
    assert (bf16.reduction_alone, bf16.reduction_in_all) == (0.25, 0.0)


def test_shares_and_the_rest_make_up_what_all_are_worth() -> None:
    found = contributions()
    shares = [value(one.share) for one in found.each if one.share]
    assert len(shares) == sum(one.in_all for one in OPTIMISATIONS)
    assert math.prod(shares) * value(found.rest) == pytest.approx(value(found.together))


def test_where_optimisations_meddle_with_each_other_in_pairs_the_shares_leave_nothing_over() -> None:
    """The average of first in and last in is then the mean over all orders in which they could be switched on."""
    names = [one.name for one in OPTIMISATIONS if one.in_all]
    logs = {name: 0.05 * place - 0.1 for place, name in enumerate(names)}
    pairs = {(a, b): 0.01 * i - 0.02 * j for i, a in enumerate(names) for j, b in enumerate(names) if i < j}

    def speed(on: list[str]) -> float:
        return math.exp(sum(logs[one] for one in on) + sum(value for pair, value in pairs.items() if {*pair} <= {*on}))

    speeds = {name: speed([name]) for name in names} | {ALL: speed(names)}
    speeds |= {f"without-{name}": speed([one for one in names if one != name]) for name in names}
    found = contributions(noise=0.0, speeds=speeds)
    assert value(found.rest) == pytest.approx(1.0)
    assert value(by_name(found.each)["compile"].share) == pytest.approx(
        math.exp(logs["compile"] + sum(value for pair, value in pairs.items() if "compile" in pair) / 2)
    )


def test_what_was_not_measured_or_is_no_part_of_all_has_no_share() -> None:
    found = contributions(failures={"without-bf16": "out of memory"})
    each = by_name(found.each)
    assert each["bf16"].alone is not None and each["bf16"].in_all is None and each["bf16"].share is None
    assert each["bf16"].reduction_in_all is None
    assert each["fp16"].alone is not None and each["fp16"].in_all is None
    # What is left over is bf16's: 2.0 over the geometric means of checkpointing, fused and compile.
    assert value(found.rest) == pytest.approx(2 / math.sqrt(0.8 * 0.8 * 1.1 * 1.2 * 1.25), rel=0.02)


def test_without_all_or_a_baseline_there_is_nothing_to_divide() -> None:
    for missing in (ALL, BASELINE):
        found = contributions(failures={missing: "out of memory"})
        assert found.together is None and found.rest is None
    without_shares = [cell for cell in CELLS if cell.group != "without"]
    found = results(without_shares).contributions
    assert found.together is not None
    assert found.rest is None and all(one.share is None for one in found.each)


def test_the_rest_is_of_the_rounds_that_have_every_share() -> None:
    found = contributions(num_rounds=9, failed_rounds=[("bf16", 2), ("without-compile", 5)])
    assert found.together is not None and found.together.num_rounds == 9
    assert found.rest is not None and found.rest.num_rounds == 7


def test_what_spoils_the_loss_is_marked_alone_and_in_all() -> None:
    found = by_name(contributions(losses={"bf16": 9.0, "all": 9.0, "without-compile": 6.0, "without-bf16": 9.0}).each)
    assert (found["bf16"].spoils_alone, found["bf16"].spoils_in_all, found["bf16"].spoils) == (True, False, True)
    assert (found["compile"].spoils_alone, found["compile"].spoils_in_all, found["compile"].spoils) == (
        False,
        True,
        True,
    )
    assert not by_name(contributions().each)["bf16"].spoils
