"""Speed-up and efficiency of each point, and the ideal they are held against."""

from __future__ import annotations

from typing import Any

import pytest
from scaling_runs import CORES, GPUS, results

from dist_trainer.benchmark.scaling.points import Point


def found(**how: Any) -> dict[tuple[str, int], Point]:
    return {(point.mode, point.num_ranks): point for point in results(**how).points}


def test_speed_up_is_of_tokens_and_efficiency_is_per_rank() -> None:
    points = found(capacities=GPUS)
    weak, strong = points["weak", 4], points["strong", 4]
    assert weak.speed_up is not None and strong.speed_up is not None
    assert (weak.speed_up.value, weak.efficiency) == (pytest.approx(3.6), pytest.approx(0.9))
    assert (strong.speed_up.value, strong.efficiency) == (pytest.approx(2.0), pytest.approx(0.5))
    assert weak.speed_up.low == weak.speed_up.high == pytest.approx(3.6, rel=1e-3)
    assert weak.judgement == "faster" and weak.tokens_per_s == pytest.approx(3600)


def test_with_a_gpu_for_each_rank_the_ideal_is_the_ranks() -> None:
    assert [point.ideal for point in results(capacities=GPUS).points] == [1, 2, 4] * 2
    assert all(point.share_of_ideal == point.efficiency for point in results(capacities=GPUS).points)


def test_ranks_that_share_cores_are_held_against_the_cores_in_use() -> None:
    points = found(capacities=CORES)
    assert [point.ideal for point in points.values()] == [1, 1, 1] * 2
    assert points["strong", 2].share_of_ideal == pytest.approx(1.8)
    assert points["strong", 2].efficiency == pytest.approx(0.9)
    assert [point.is_crowded for point in points.values()] == [False, False, True] * 2


def test_the_smallest_world_is_in_both_and_beside_nothing() -> None:
    points = found()
    for mode in ("strong", "weak"):
        base = points[mode, 1]
        assert (base.cell, base.judgement, base.speed_up, base.efficiency) == ("world-1", "", None, None)
        assert base.tokens_per_s == pytest.approx(1000)


def test_what_failed_keeps_its_reason_and_the_others_their_figures() -> None:
    points = found(failures={"weak-4": "out of memory"})
    failed = points["weak", 4]
    assert (failed.judgement, failed.failure, failed.speed_up) == ("failed", "out of memory", None)
    assert points["weak", 2].judgement == "faster"


def test_without_the_smallest_world_there_is_no_speed_up() -> None:
    points = found(failures={"world-1": "out of memory"})
    assert points["strong", 1].judgement == "failed"
    assert points["strong", 2].judgement == "no baseline" and points["strong", 2].speed_up is None


def test_with_few_rounds_there_is_no_interval_and_with_none_nothing_is_measured() -> None:
    few = found(num_rounds=2)["weak", 2]
    assert few.judgement == "too few rounds" and few.speed_up is not None and few.speed_up.low is None
    assert {point.judgement for point in results(num_rounds=0).points} == {"not measured"}


def test_where_the_interval_includes_1_no_difference_is_shown() -> None:
    assert found(tokens_per_s={}, noise=0.02)["strong", 4].judgement == "no difference shown"
