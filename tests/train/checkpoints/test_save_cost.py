"""What a save costs, by the durations of the steps around it."""

from __future__ import annotations

import pytest

from dist_trainer.train.checkpoints.cost import SaveCost


def cost_after(quiet: list[float], beside: list[float], *, waited_s: float = 0.0) -> SaveCost:
    cost = SaveCost()
    for step_s in quiet:
        cost.after_step(step_s, waited_s=0.0, is_saving=False)
    for number, step_s in enumerate(beside):
        cost.after_step(step_s, waited_s=waited_s if number == 0 else 0.0, is_saving=True)
    return cost


def test_it_is_what_steps_waited_and_by_how_much_they_were_slower() -> None:
    assert cost_after([1.0, 1.0, 9.0], [1.2, 1.25, 1.5]).of_save(0.5) == pytest.approx(0.5 + 3 * 0.25)


def test_what_a_step_waited_is_not_counted_twice() -> None:
    assert cost_after([1.0], [3.0], waited_s=2.0).of_save(2.0) == pytest.approx(2.0)


def test_steps_that_were_faster_give_nothing_back() -> None:
    assert cost_after([1.0], [0.9, 0.9]).of_save(0.1) == pytest.approx(0.1)


def test_without_steps_to_compare_it_is_what_they_waited() -> None:
    assert cost_after([], [5.0]).of_save(0.1) == pytest.approx(0.1)
    assert cost_after([5.0], []).of_save(0.1) == pytest.approx(0.1)


def test_each_save_has_its_own_steps_and_each_phase_too() -> None:
    cost = cost_after([1.0], [2.0])
    assert (cost.of_save(0.0), cost.of_save(0.0)) == (1.0, 0.0)
    cost.forget()
    cost.after_step(4.0, waited_s=0.0, is_saving=True)
    assert cost.of_save(0.0) == 0.0
