from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import pytest
from worth_runs import CELLS, results

from dist_trainer.benchmark.worth.cells import ALL, BASELINE
from dist_trainer.benchmark.worth.charts import (
    FASTER,
    LABEL_HEIGHT,
    LABEL_WIDTH,
    NOT_SHOWN,
    SLOWER,
    SPOILED,
    TOTAL,
    Bar,
    Bars,
    Scatter,
    beside,
    speed_against_memory,
    waterfall,
    worth_bars,
)


def scatter(**how: Any) -> Scatter:
    found = speed_against_memory(results(**how).rows)
    assert found is not None
    return found


def bars(**how: Any) -> dict[str, Bar]:
    found = worth_bars(results(**how).contributions)
    assert found is not None
    return {bar.name: bar for bar in found.bars}


def way(**how: Any) -> Bars:
    found = waterfall(results(**how))
    assert found is not None
    return found


def test_each_cell_with_speed_and_memory_is_a_point_with_its_rows_number_and_its_interval() -> None:
    found = scatter()
    dots = [path for look, path in found.shapes if look.startswith("dot")]
    whiskers = [path for look, path in found.shapes if look.startswith("line")]
    # fp16 failed; the baseline has no interval beside itself.
    assert len(dots) == len(CELLS) - 1 and len(whiskers) == len(CELLS) - 2
    assert [number for _, _, number, _ in found.numbers] == [
        str(number) for number, cell in enumerate(CELLS, start=1) if cell.name != "fp16"
    ]
    assert found.left_out == ("fp16",)
    texts = {number: text for _, _, number, text in found.numbers}
    assert re.fullmatch(r"5\. bf16: x1\.5\d \(1\.4\d to 1\.5\d\), 0\.75 GB", texts["5"]), texts["5"]


def test_faster_is_higher_and_less_memory_further_left() -> None:
    found = scatter(noise=0.0)
    places = [tuple(map(float, re.findall(r"[\d.]+", path)[:2])) for look, path in found.shapes if look[:3] == "dot"]
    at = dict(zip([number for _, _, number, _ in found.numbers], places, strict=True))
    (base_x, base_y), (x, y) = at["1"], at["5"]
    assert x < base_x and y < base_y
    assert ("rule baseline", f"M0 {base_y:.1f}H1000") in found.shapes


def test_an_interval_without_much_of_an_end_leaves_the_points_where_they_can_be_seen() -> None:
    shapes = scatter(num_rounds=6, noise=0.6).shapes
    ys = [float(y) for look, path in shapes if look[:3] == "dot" for y in re.findall(r" ([\d.]+)h", path)]
    assert max(ys) - min(ys) > 0.4 * 300
    ends = [float(y) for look, path in shapes if look[:4] == "line" for y in re.findall(r"[ V](-?[\d.]+)", path)]
    assert min(ends) >= 0 and max(ends) <= 300


def test_without_two_points_there_is_no_chart() -> None:
    for how in ({"peak_bytes": None}, {"num_rounds": 0}, {"failures": {BASELINE: "out of memory"}}):
        assert speed_against_memory(results(**how).rows) is None


def test_numbers_lie_on_no_point_and_on_no_other_number() -> None:
    points = [(20 + 4 * (i % 3), 30 + 11 * (i // 3)) for i in range(9)]
    numbers = beside(points)
    for (x, y), (other_x, other_y) in itertools.combinations(numbers, 2):
        assert abs(x - other_x) >= 0.9 * LABEL_WIDTH or abs(y - other_y) >= 0.9 * LABEL_HEIGHT
    for x, y in numbers:
        assert all(abs(x - a) >= 0.5 * LABEL_WIDTH or abs(y - b) >= 0.5 * LABEL_HEIGHT for a, b in points)


def test_bars_reach_from_1_to_the_ratio_and_are_grey_where_no_difference_is_shown() -> None:
    found = worth_bars(results().contributions)
    assert found is not None and found.zero is not None
    by_name = {bar.name: bar for bar in found.bars}
    assert by_name["bf16, alone"].left == pytest.approx(found.zero) and by_name["bf16, alone"].look == FASTER
    slower = by_name["activation checkpointing, in all"]
    assert slower.left + slower.width == pytest.approx(found.zero) and slower.look == SLOWER
    assert by_name["loader workers, alone"].look == NOT_SHOWN
    for bar in found.bars:
        assert bar.low is not None and bar.high is not None and 0 <= bar.low <= bar.high <= 100
        end = bar.left + bar.width if bar.left >= found.zero - 1e-9 else bar.left
        assert bar.low - 1e-9 <= end <= bar.high + 1e-9


def test_what_spoils_the_loss_has_a_look_of_its_own() -> None:
    assert bars(losses={"bf16": 9.0})["bf16, alone"].look == SPOILED
    assert bars(losses={"bf16": 9.0})["bf16, in all"].look == FASTER
    assert way(losses={ALL: 9.0}).bars[-1].look == SPOILED


def test_without_measurements_there_are_no_bars() -> None:
    assert worth_bars(results(num_rounds=0).contributions) is None


@pytest.mark.parametrize(
    ("failures", "failed_rounds"),
    [({}, ()), ({"without-bf16": "out of memory"}, ()), ({}, [("bf16", 1), ("compile", 4), ("without-fused", 4)])],
)
def test_the_waterfall_leads_without_a_gap_from_the_baseline_to_all_together(
    failures: dict[str, str], failed_rounds: Sequence[tuple[str, int]]
) -> None:
    made = results(failures=failures, failed_rounds=failed_rounds, noise=0.02)
    found, together = waterfall(made), made.contributions.together
    assert found is not None and together is not None
    first, *steps, last = found.bars
    assert first.look == last.look == TOTAL and first.left == last.left == 0
    assert last.width / first.width == pytest.approx(together.value)
    level = first.width
    for bar in steps:
        before, after = sorted((bar.left, bar.left + bar.width), key=lambda end: abs(end - level))
        assert before == pytest.approx(level), bar
        level = after
    assert level == pytest.approx(last.width)
    assert [bar.name for bar in found.bars][-2:] == ["the rest", "all together"]
    assert ("bf16" in [bar.name for bar in steps]) == (not failures)


def test_without_a_way_there_is_no_waterfall() -> None:
    for failing in (BASELINE, ALL):
        assert waterfall(results(failures={failing: "out of memory"})) is None
    assert waterfall(results([cell for cell in CELLS if cell.group != "without"])) is None
