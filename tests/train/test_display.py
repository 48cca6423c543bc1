"""What rank 0 prints where there is no terminal."""

from __future__ import annotations

import pytest

from dist_trainer.config.resolve import Phase
from dist_trainer.records import StepRecord
from dist_trainer.train.display import Display

PHASE = Phase(1, "warm", 128, 3, 4096, "stdlib")


def record(step: int) -> StepRecord:
    return StepRecord(step, "warm", 2.5, 1.0, 6e-4, None, 4096, 8192.0, 0.0, 0.5, 0.0)


def test_rank_zero_prints_the_phase_its_first_step_and_its_last(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(speaks=True)
    display.phase(PHASE, last_step=3)
    for step in (1, 2, 3):
        display.step(record(step), 2**30, step)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "phase 1: warm, 3 steps of 4.1K tokens, sequence length 128"
    assert lines[1] == "step 1  loss 2.5000  lr 6.00e-04  8.2K tokens/s  1.00 GiB"
    assert [line.split()[1] for line in lines[1:]] == ["1", "3"]


def test_a_phase_that_will_be_cut_short_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Display(speaks=True).phase(PHASE, last_step=2)
    assert "2 of 3 steps of" in capsys.readouterr().out


def test_the_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(speaks=False)
    display.phase(PHASE, last_step=3)
    display.step(record(1), None, 1)
    display.note("hello")
    assert capsys.readouterr().out == ""
