"""Which starts of a run have failed, for how long it has trained, and what its saves took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_folders import event, step, write_lines

from dist_trainer.checkpoints.cadence import Failures, Save
from dist_trainer.checkpoints.history import History, history

START, PHASE = event("start", "again", 0.0), event("phase", "phase 1: only", 1.0)
END, NOW = event("end", "step 4", 9.0), event("start", "now", 99.0)


def history_of(folder: Path, *events: dict[str, Any], num_steps: int = 0) -> History:
    write_lines(folder / "events.jsonl", events)
    write_lines(folder / "steps.jsonl", [step(number + 1, step_s=2.5) for number in range(num_steps)])
    return history(folder)


def test_a_first_start_has_none(tmp_path: Path) -> None:
    assert history_of(tmp_path, NOW) == History(Failures(0, 0.0), ())
    assert history(tmp_path / "elsewhere") == History(Failures(0, 0.0), ())


@pytest.mark.parametrize(
    ("ends", "count"),
    [
        ([END], 0),
        ([event("error", "the disk fails", 3.0)], 1),
        # A rank and `launch` both tell of it.
        ([event("error", "rank 1 is gone", 3.0), event("error", "rank 1 was killed", 4.0, rank=None)], 1),
        # Killed, with nobody left to tell.
        ([], 1),
        ([event("interrupted", "at step 3 (SIGINT)", 3.0)], 0),
        ([event("interrupted", "at step 3 (SIGTERM): SLURM's time limit for the job", 3.0, rank=None)], 0),
    ],
)
def test_an_error_or_no_end_is_a_failure_and_a_signal_is_none(
    tmp_path: Path, ends: list[dict[str, Any]], count: int
) -> None:
    found = history_of(tmp_path, START, PHASE, *ends, NOW, num_steps=4)
    assert found.failures == Failures(count, 10.0)


def test_one_that_had_not_begun_to_train_lost_nothing(tmp_path: Path) -> None:
    assert history_of(tmp_path, START, event("error", "no such data", 0.5), START, NOW).failures.count == 0


def test_all_starts_count_and_steps_that_were_taken_again_too(tmp_path: Path) -> None:
    write_lines(tmp_path / "events.jsonl", [START, PHASE, START, PHASE, START, PHASE, END, NOW])
    write_lines(tmp_path / "steps.jsonl", [step(number, step_s=1.0) for number in (1, 2, 3, 2, 3, 4)])
    assert history(tmp_path).failures == Failures(2, 6.0)


def test_saves_within_phases_are_those_that_say_what_they_cost(tmp_path: Path) -> None:
    saves = [
        event("checkpoint", "step-2", 2.0, seconds=3.0, held_s=0.1, cost_s=0.5),
        event("checkpoint", "step-4", 4.0, seconds=9.0, held_s=9.0),
    ]
    assert history_of(tmp_path, START, PHASE, *saves, END, NOW).saves == (Save(0.5, 3.0),)
