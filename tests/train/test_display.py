"""What rank 0 prints where there is no terminal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dist_trainer.config.resolve import Phase
from dist_trainer.records import StepRecord
from dist_trainer.train.display import Display, wrapped

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
    assert lines[1] == "step 1  loss 2.5000  lr 6.00e-04  8.2K tokens/s  1.07 GB"
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


def test_no_figure_of_the_bar_is_cut_in_a_terminal_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("dist_trainer.train.display.is_terminal", lambda descriptor: True)
    display = Display(speaks=True)
    display.phase(Phase(1, "warm", 128, 150, 4096, "stdlib"), last_step=150)
    display.step(replace(record(149), loss=10.5, tokens_per_s=123456.0), 40 * 10**9, 149)
    display.close()
    shown = capsys.readouterr().out
    assert "149/150" in shown
    assert "loss 10.5000  lr 6.00e-04  123.5K tokens/s  40.00 GB" in shown


def test_a_long_line_breaks_between_words_and_goes_on_below_its_text() -> None:
    text = "plan       12.3 GB a GPU, of which optimizer states 9.1 GB"
    assert wrapped(text, 36).splitlines() == [
        "plan       12.3 GB a GPU, of which",
        "           optimizer states 9.1 GB",
    ]


def test_a_line_without_a_label_goes_on_at_the_margin() -> None:
    assert wrapped("resumed from here at step 3", 20).splitlines() == ["resumed from here at", "step 3"]


def test_a_path_that_is_longer_than_the_line_stays_whole() -> None:
    path = "/scratch/some-body/runs/tiny-zero2-001"
    assert wrapped(f"run        {path}", 30).split()[-1] == path


@pytest.mark.parametrize("width", [None, 20])
def test_without_a_terminal_and_in_a_very_narrow_one_nothing_is_broken(width: int | None) -> None:
    text = "deepspeed  zero2: stage 2, precision bf16, checkpointing on"
    assert wrapped(text, width) == text
