from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from worth_runs import ALONE, CELLS, ENVIRONMENT, SPEEDS, results

from dist_trainer.benchmark.worth.cells import AGAIN, OTHER_SEEDS
from dist_trainer.benchmark.worth.compare import Comparison, compare, compare_folders, side, text
from dist_trainer.benchmark.worth.ratios import Estimate, estimate
from dist_trainer.benchmark.worth.results import write_results
from dist_trainer.errors import UserError

OLD = results()


def beside_old(**how: Any) -> Comparison:
    return compare(OLD, results(**how))


def titles(found: Comparison) -> list[str]:
    return [change.title for change in found.regressions]


def line_of(found: Comparison, title: str) -> str:
    return next(line for line in text(found).splitlines() if line.startswith(f"{title}  "))


def test_results_beside_themselves_show_nothing() -> None:
    found = compare(OLD, OLD)
    assert found.exit_status == 0 and found.regressions == []
    assert [change.title for change in found.changes] == [cell.title for cell in CELLS]
    assert text(found).endswith("\nNo regression is shown.\n")
    assert line_of(found, "bf16").endswith("no difference shown")
    # The loss of fast.json is spoiled in both.
    assert "spoils the loss" not in text(found)


def test_a_cell_that_became_slower_is_a_regression_in_both_ways() -> None:
    found = beside_old(speeds={**SPEEDS, "bf16": 0.9 * ALONE["bf16"]})
    assert found.exit_status == 1 and titles(found) == ["bf16"]
    line = line_of(found, "bf16")
    assert line.endswith("REGRESSION: slower beside its baseline; REGRESSION: slower in tokens/s")
    assert text(found).endswith("\n1 regression: bf16.\n")


def test_a_cell_that_became_faster_is_none() -> None:
    found = beside_old(speeds={**SPEEDS, "bf16": 1.2 * ALONE["bf16"]})
    assert found.exit_status == 0
    assert line_of(found, "bf16").endswith("  faster beside its baseline; faster in tokens/s")


def test_all_cells_slower_are_a_regression_in_tokens_a_second_alone() -> None:
    found = beside_old(tokens_per_s=900.0)
    assert {"baseline", "bf16", "all together"} <= set(titles(found))
    assert all(change.ratio is None and change.speed == "slower" for change in found.regressions)
    assert line_of(found, "baseline").endswith("REGRESSION: slower in tokens/s")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hardware": "8 cores of another processor"}, "hardware 2 cores of a processor, now 8 cores of another"),
        ({"num_ranks": 2}, "num_ranks 1, now 2"),
        ({"num_threads": 1}, "num_threads 2, now 1"),
    ],
)
def test_on_other_hardware_each_cell_is_judged_beside_its_own_baseline_alone(change: dict[str, Any], said: str) -> None:
    environment = replace(ENVIRONMENT, **change)
    slow = beside_old(environment=environment, tokens_per_s=500.0, failures={"zero3": "out of memory"})
    assert slow.exit_status == 0
    assert f"other hardware: {said}" in text(slow) and "Not judged: tokens/s, and what fails now." in text(slow)
    assert line_of(slow, "zero3.json").endswith("fails: out of memory")
    worse = beside_old(environment=environment, tokens_per_s=5000.0, speeds={**SPEEDS, "bf16": 1.2})
    assert titles(worse) == ["bf16"] and worse.regressions[0].speed is None


def test_a_cell_that_fails_now_is_a_regression_on_the_same_hardware() -> None:
    found = beside_old(failures={"fp16": "no fp16", "zero3": "out of memory"})
    assert titles(found) == ["zero3.json"]
    assert line_of(found, "zero3.json").endswith("REGRESSION: fails now: out of memory")
    assert line_of(found, "fp16").endswith("fails: no fp16")


def test_the_noise_cells_are_not_judged() -> None:
    found = beside_old(speeds={**SPEEDS, AGAIN: 0.5, OTHER_SEEDS: 0.5})
    assert found.exit_status == 0
    assert line_of(found, "baseline again").endswith("noise, not judged")


def test_what_has_no_figures_in_one_of_them_says_so() -> None:
    found = beside_old(failures={})
    assert line_of(found, "fp16").endswith("  failed before") and found.exit_status == 0
    assert line_of(beside_old(num_rounds=0), "bf16").endswith("  not measured now")
    assert line_of(compare(results(num_rounds=0), OLD), "bf16").endswith("  not measured before")


def test_with_too_few_rounds_nothing_is_judged() -> None:
    found = beside_old(num_rounds=4, speeds={**SPEEDS, "bf16": 0.5})
    assert found.exit_status == 0
    assert line_of(found, "bf16").endswith("too few rounds")


def test_cells_of_one_alone_and_a_loss_that_is_spoiled_now_are_said() -> None:
    found = compare(results(CELLS[:-1]), results(CELLS[1:], losses={"zero1": 9.0}, noise=0.0))
    assert line_of(found, "baseline").endswith("only in the old results")
    assert line_of(found, CELLS[-1].title).endswith("only in the new results")
    assert "spoils the loss now" not in text(found)
    found = beside_old(losses={"zero1": 9.0})
    assert "spoils the loss now" in line_of(found, "zero1.json") and found.exit_status == 0


def test_figures_stand_side_by_side_with_what_else_differs() -> None:
    environment = replace(ENVIRONMENT, revision=None, versions={"torch": "2.14.0"}, num_steps=20)
    found = beside_old(environment=environment, peak_bytes=900_000_000)
    assert "+20.0%" in line_of(found, "bf16") and "-10.0%" in line_of(found, "baseline")
    for words in (
        "differs: num_steps 12, now 20",
        "differs: revision 0123abc, now not known",
        "differs: deepspeed 0.19.8, now not known",
        "differs: torch 2.13.0, now 2.14.0",
        "The same hardware.",
    ):
        assert words in text(found).splitlines() or words in text(found)


def test_folders_are_compared_and_those_of_other_work_refused(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("old", "new", "other")]
    for folder, environment in zip(
        folders, (ENVIRONMENT, ENVIRONMENT, replace(ENVIRONMENT, model_size="small")), strict=True
    ):
        folder.mkdir()
        write_results(replace(OLD, environment=environment), folder)
    assert compare_folders(folders[0], folders[1]).exit_status == 0
    with pytest.raises(UserError, match="not of the same work") as caught:
        compare_folders(folders[0], folders[2])
    assert "environment.model_size" in str(caught.value) and str(folders[2]) in str(caught.value)
    with pytest.raises(UserError, match="no results"):
        compare_folders(tmp_path, folders[0])


def test_what_a_file_says_is_no_command_to_the_terminal() -> None:
    found = beside_old(failures={"zero3": "\x1b[2Jgone"})
    assert "\x1b" not in text(found)


def test_identical_cells_are_hardly_ever_called_a_regression_and_10_percent_are() -> None:
    state = random.Random(5)

    def measured(slow_down: float = 0.0) -> Estimate | None:
        return estimate({number: state.gauss(-slow_down, 0.028) for number in range(15)})

    assert sum(side(measured(), measured()) == "slower" for _ in range(400)) <= 4
    assert sum(side(measured(), measured(0.1)) == "slower" for _ in range(50)) >= 48


def test_intervals_that_touch_show_nothing() -> None:
    old = Estimate(1.0, 0.9, 1.1, 7)
    assert side(old, Estimate(0.85, 0.8, 0.9, 7)) is None and side(old, Estimate(0.85, 0.8, 0.89, 7)) == "slower"
    assert side(old, Estimate(1.2, 1.1, 1.3, 7)) is None and side(old, Estimate(1.2, 1.11, 1.3, 7)) == "faster"
    assert side(old, None) is None and side(None, old) is None and side(old, Estimate(0.1, None, None, 2)) is None
