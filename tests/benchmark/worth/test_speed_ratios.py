from __future__ import annotations

import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pytest

from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.benchmark.worth.ratios import FEWEST_OF_AN_ORDER, Estimate, estimate, paired, ratio

NOISE = 0.02
NUM_RUNS = 400


def measured(
    step_s: Mapping[str, float],
    *,
    num_rounds: int,
    random_state: random.Random,
    noise: float = NOISE,
    machine: Callable[[int], float] = lambda place_in_run: 1.0,
) -> list[Measurement]:
    """Rounds in one order and its reverse on a machine that is so many times as slow at that place of the run."""
    found = []
    for number in range(num_rounds):
        order = list(step_s) if number % 2 == 0 else list(reversed(step_s))
        for place, cell in enumerate(order):
            slow = machine(len(found)) * math.exp(random_state.gauss(0, noise))
            found.append(Measurement(cell, number, place, 0.0, num_tokens=100, step_s=[step_s[cell] * slow] * 3))
    return found


def verdicts(
    step_s: Mapping[str, float],
    *,
    num_rounds: int = 15,
    cell: str = "cell",
    noise: float = NOISE,
    machine: Callable[[random.Random], Callable[[int], float]] | None = None,
    num_runs: int = NUM_RUNS,
) -> Counter[str]:
    found: Counter[str] = Counter()
    for number in range(num_runs):
        state = random.Random(number)
        at = machine(state) if machine else lambda _: 1.0
        rounds = measured(step_s, num_rounds=num_rounds, random_state=state, noise=noise, machine=at)
        seen = ratio(rounds, cell, "baseline")
        assert seen is not None
        found[seen.verdict] += 1
    return found


def one(step_s: float, cell: str, number: int) -> Measurement:
    return Measurement(cell, number, 0, 0.0, num_tokens=100, step_s=[step_s, step_s, 9 * step_s])


def rounds(pairs: Sequence[tuple[float, float]]) -> list[Measurement]:
    return [
        measurement
        for number, (base, cell) in enumerate(pairs)
        for measurement in (one(base, "baseline", number), one(cell, "cell", number))
    ]


def test_identical_cells_are_called_different_as_often_as_a_95_percent_interval_says() -> None:
    found = verdicts({"baseline": 1.0, "cell": 1.0})
    num_different = found["faster"] + found["slower"]
    assert 0.025 * NUM_RUNS <= num_different <= 0.05 * NUM_RUNS
    assert min(found["faster"], found["slower"]) > 0


def test_with_the_fewest_rounds_identical_cells_are_not_called_different_more_often() -> None:
    found = verdicts({"baseline": 1.0, "cell": 1.0}, num_rounds=2 * FEWEST_OF_AN_ORDER)
    assert found["too few rounds"] == 0
    assert found["faster"] + found["slower"] <= 0.05 * NUM_RUNS


def test_a_slow_down_of_5_percent_is_found() -> None:
    found = verdicts({"baseline": 1.0, "cell": 1.05})
    assert found["slower"] >= 0.9 * NUM_RUNS and found["faster"] == 0


def test_a_slow_down_of_5_percent_is_mostly_found_with_7_rounds() -> None:
    found = verdicts({"baseline": 1.0, "cell": 1.05}, num_rounds=7)
    assert found["slower"] >= 0.6 * NUM_RUNS and found["faster"] == 0


# Twenty cells between the two, so that the machine has time to change.
SPREAD_OUT = {"baseline": 1.0, **{f"other-{number}": 1.0 for number in range(20)}, "cell": 1.0}


@pytest.mark.parametrize("num_rounds", [7, 15])
def test_a_slow_trend_of_the_machine_makes_no_winner(num_rounds: int) -> None:
    def warming(state: random.Random) -> Callable[[int], float]:
        # 8% from the baseline to the cell of one round, which is four times the noise.
        return lambda place: math.exp(0.08 * place / len(SPREAD_OUT))

    found = verdicts(SPREAD_OUT, num_rounds=num_rounds, machine=warming, num_runs=200)
    assert found["faster"] + found["slower"] <= 0.05 * 200


def test_a_slow_trend_of_the_machine_hides_no_slow_down() -> None:
    def warming(state: random.Random) -> Callable[[int], float]:
        return lambda place: math.exp(0.08 * place / len(SPREAD_OUT))

    found = verdicts({**SPREAD_OUT, "cell": 1.05}, machine=warming, num_runs=100)
    assert found["slower"] >= 90


@pytest.mark.parametrize("size", [0.05, 0.3])
def test_a_step_of_the_machines_speed_makes_no_winner(size: float) -> None:
    def throttled(state: random.Random) -> Callable[[int], float]:
        since = state.randrange(15 * len(SPREAD_OUT))
        return lambda place: 1 + size if place >= since else 1.0

    found = verdicts(SPREAD_OUT, machine=throttled, num_runs=200)
    assert found["faster"] + found["slower"] <= 0.05 * 200


def test_the_ratio_is_of_speeds_and_paired_by_round() -> None:
    seen = ratio(rounds([(1.0, 0.5), (3.0, 1.5), (2.0, 1.0), (5.0, 2.5), (1.0, 0.5), (7.0, 3.5)]), "cell", "baseline")
    assert seen is not None
    assert (seen.value, seen.low, seen.high) == (pytest.approx(2), pytest.approx(2), pytest.approx(2))
    assert seen.num_rounds == 6 and seen.verdict == "faster"


def test_values_that_are_all_the_same_show_no_difference() -> None:
    assert ratio(rounds([(1.0, 1.0)] * 7), "cell", "baseline") == Estimate(1.0, 1.0, 1.0, 7)
    assert Estimate(1.0, 1.0, 1.0, 7).verdict == "no difference shown"


def test_both_orders_count_the_same_where_one_has_a_round_more() -> None:
    # The machine gives the cell 10% in the one order and takes them in the other.
    seen = ratio(rounds([(1.0, 0.9), (0.9, 1.0)] * 3 + [(1.0, 0.9)]), "cell", "baseline")
    assert seen is not None and seen.value == pytest.approx(1)


def test_fewer_than_three_rounds_of_an_order_have_no_interval() -> None:
    seen = ratio(rounds([(1.0, 0.5)] * 5), "cell", "baseline")
    assert seen == Estimate(pytest.approx(2.0), None, None, 5)
    assert seen is not None and seen.verdict == "too few rounds"
    assert estimate({0: 0.1, 2: 0.1, 4: 0.2, 6: 0.3, 8: 0.1}) == Estimate(pytest.approx(math.exp(0.16)), None, None, 5)


def test_rounds_that_failed_are_left_out_and_a_later_measurement_of_a_round_counts() -> None:
    found = rounds([(1.0, 0.5)] * 8)
    found += [Measurement("cell", 8, 0, 0.0, failure="out of memory"), one(1.0, "baseline", 8), one(1.0, "cell", 0)]
    seen = ratio(found, "cell", "baseline")
    assert seen is not None and seen.num_rounds == 8
    assert seen.value == pytest.approx(2 ** (1 - 0.25 / 2))
    assert ratio(found, "cell", "nothing") is None and ratio([], "cell", "baseline") is None


def test_the_same_measurements_give_the_same_interval() -> None:
    found = measured({"baseline": 1.0, "cell": 1.0}, num_rounds=9, random_state=random.Random(3))
    assert ratio(found, "cell", "baseline") == ratio(found, "cell", "baseline")


def test_paired_takes_the_rounds_that_both_have() -> None:
    assert paired({0: 1.0, 1: 2.0, 3: 5.0}, {1: 0.5, 3: 1.0, 4: 7.0}) == {1: 1.5, 3: 4.0}


def test_scipy_is_imported_only_where_an_interval_is_made() -> None:
    code = "import sys, dist_trainer.benchmark.worth.ratios, dist_trainer.cli; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
