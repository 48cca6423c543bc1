"""What the loop says of a run in which there is nothing to do."""

from __future__ import annotations

from dist_trainer.checkpoints.position import Position
from dist_trainer.config.resolve import Phase
from dist_trainer.data.sampler import Place
from dist_trainer.train.loop import nothing_left

WARM = Phase(1, "warm", 128, 2, 4096, "stdlib")
MAIN = Phase(2, "main", 256, 3, 4096, "stdlib")


def trained(*phases: str) -> Position:
    position = Position()
    for number, phase in enumerate(phases, start=1):
        position = position.after_step(phase, num_tokens=4096, order="order", place=Place(0, 128 * number, 128))
    return position


def test_a_run_at_its_end_says_that_its_phases_are_done() -> None:
    told = nothing_left(trained("warm", "warm", "main", "main", "main"), [WARM, MAIN], None)
    assert told == "nothing left to do: the run stands at step 5, and that is the end of its phases"


def test_one_of_a_single_phase_speaks_of_that() -> None:
    assert nothing_left(trained("warm", "warm"), [WARM], 9).endswith("step 2, and that is the end of its phase")


def test_one_that_was_to_stop_earlier_names_the_switch() -> None:
    told = nothing_left(trained("warm"), [WARM, MAIN], 1)
    assert told == "nothing left to do: the run stands at step 1, and --max-steps is 1"
