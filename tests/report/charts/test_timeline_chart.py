from __future__ import annotations

import pytest

from dist_trainer.report.charts.timeline import MAX_NUM_RANKS, Timeline, timeline
from dist_trainer.report.reading.starts import RankStart, Stage


def start(rank: int, *, end_s: float | None = 4.0, begin_s: float = 0.0) -> RankStart:
    return RankStart(rank, "h1", (Stage("imports", begin_s, 2.0), Stage("first step", 2.0, end_s)))


def drawn(*starts: RankStart) -> Timeline:
    made = timeline(starts)
    assert made is not None
    return made


def test_without_records_there_is_no_chart() -> None:
    assert timeline(()) is None


def test_all_bars_share_one_scale_and_begin_where_their_rank_does() -> None:
    first, second = drawn(start(0), start(1, begin_s=1.0, end_s=8.0)).bars
    assert first.gap_percent == 0
    assert second.segments[0].percent == second.gap_percent == pytest.approx(first.segments[0].percent / 2)
    assert second.segments[1].percent == pytest.approx(3 * first.segments[1].percent)
    assert second.gap_percent + sum(segment.percent for segment in second.segments) < 100
    assert [first.total, second.total] == ["4.00 s", "8.00 s"]


def test_a_rank_without_a_first_step_says_in_which_stage_it_is() -> None:
    made = drawn(start(0), start(1, end_s=None))
    assert [bar.total for bar in made.bars] == ["4.00 s", "in first step"]
    assert "Of 1 rank no end of a first step is recorded." in made.caption


def test_of_many_ranks_the_slowest_are_shown_and_first_those_without_a_first_step() -> None:
    many = [start(rank, end_s=4.0 + rank) for rank in range(40)]
    many[7] = start(7, end_s=None)
    made = drawn(*many)
    assert [bar.name for bar in made.bars] == [f"rank {rank}" for rank in (7, *range(39, 39 - MAX_NUM_RANKS + 1, -1))]
    assert f"The slowest {MAX_NUM_RANKS} of 40 ranks." in made.caption
    assert "after 24.00 s (median)" in made.caption


def test_the_legend_has_the_stages_in_their_order_and_those_of_another_version_last() -> None:
    odd = RankStart(0, "h1", (Stage("warm up", 0.0, 1.0), Stage("first step", 1.0, 2.0)))
    assert [one.name for one in drawn(start(1), odd).legend] == ["imports", "first step", "warm up"]
