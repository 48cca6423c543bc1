"""One message at the terminal, and one cause in the run's events, whatever ended it."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from run_folders import event, step, write_lines

from dist_trainer.endings import ERROR, Start, end_event
from dist_trainer.launch.guards.membership import Trouble
from dist_trainer.launch.outcome import RunRecord, is_at_its_end, say_interrupted, say_trouble
from dist_trainer.records import EVENTS_FILE, STEPS_FILE, Event, read_records

CAUSE = "there is no checkpoint\n  where:    run/checkpoints"


def said_of(capsys: pytest.CaptureFixture[str], **facts: Any) -> str:
    is_local = facts.pop("is_local", True)
    say_trouble(Trouble("rank 1 on n2 ended with status 2", 2, **facts), is_local=is_local)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_every_trouble_has_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert said_of(capsys, rank=0, cause=CAUSE) == f"dist_trainer: error: {CAUSE}\n"
    assert said_of(capsys, rank=1, host="n2", cause=CAUSE) == f"dist_trainer: error: rank 1: {CAUSE}\n"
    assert said_of(capsys, rank=1, host="n2", cause=CAUSE, is_local=False).startswith(
        "dist_trainer: error: rank 1 on n2: there is no"
    )
    for rank in (0, 1, None):
        assert said_of(capsys, rank=rank) == "dist_trainer: rank 1 on n2 ended with status 2\n"
    text = said_of(capsys, rank=1, lines=("Traceback", "ValueError"))
    assert text == "dist_trainer: rank 1 on n2 ended with status 2; said last:\n    Traceback\n    ValueError\n"


def test_a_missed_target_was_shown_by_rank_0_and_is_no_failure() -> None:
    assert is_at_its_end(Trouble("rank 0 on n1 ended with status 3", 3, rank=0))
    assert not is_at_its_end(Trouble("rank 1 on n1 ended with status 3", 3, rank=1))
    assert not is_at_its_end(Trouble("rank 0 on n1 ended with status 1", 1, rank=0))


def events_of(run_dir: Path) -> list[Event]:
    return list(read_records(run_dir / "records" / EVENTS_FILE, Event))


def test_what_no_rank_could_write_launch_does(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    Start.now(tmp_path).write(end_event(ERROR, "RuntimeError: connection closed by peer", 0))
    record.failed(Trouble("rank 1 on n2 was killed by SIGKILL", 137, rank=1, host="n2"))
    (_, cause) = events_of(tmp_path)
    assert (cause.kind, cause.rank, cause.message) == (ERROR, None, "rank 1 on n2 was killed by SIGKILL")
    assert (cause.facts["status"], cause.facts["of_rank"], cause.facts["host"]) == (137, 1, "n2")


def test_what_stands_there_already_is_not_said_twice(tmp_path: Path) -> None:
    Start.now(tmp_path).write(end_event(ERROR, CAUSE, 1))
    record = RunRecord(tmp_path)
    record.failed(Trouble("rank 0 on n1 ended with status 2", 2, rank=0, cause=CAUSE))
    assert len(events_of(tmp_path)) == 2, "the same of an earlier start does not count"
    record.failed(Trouble("rank 0 on n1 ended with status 2", 2, rank=0, cause=CAUSE + "\nTraceback (--debug)"))
    assert len(events_of(tmp_path)) == 2


def test_an_interruption_is_said_and_written_with_the_step_of_this_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "records"
    write_lines(records / STEPS_FILE, [step(8), step(9)])
    record = RunRecord(tmp_path)
    say_interrupted(signal.SIGTERM, record, is_local=True)
    assert capsys.readouterr().err == "dist_trainer: interrupted before the first step (SIGTERM)\n"
    write_lines(records / EVENTS_FILE, [event("phase", "phase 1: short", 0.0, step=9)])
    write_lines(records / STEPS_FILE, [step(9), step(10)])
    say_interrupted(signal.SIGINT, record, is_local=True)
    assert capsys.readouterr().err == "dist_trainer: interrupted at step 10 (SIGINT); no step is saved\n"
    last = events_of(tmp_path)[-1]
    assert (last.kind, last.rank, last.message) == (
        "interrupted",
        None,
        "interrupted at step 10 (SIGINT); no step is saved",
    )
    say_interrupted(signal.SIGINT, None, is_local=True)
    assert "before the first step" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("end_s", "number", "is_said"),
    [
        (0.0, signal.SIGTERM, True),
        (3600.0, signal.SIGTERM, False),
        (0.0, signal.SIGINT, False),
        (None, signal.SIGTERM, False),
    ],
)
def test_the_time_limit_of_slurm_is_named(
    end_s: float | None,
    number: signal.Signals,
    is_said: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "Unknown" if end_s is None else str(int(time.time() + end_s)))
    say_interrupted(number, None, is_local=True)
    said = capsys.readouterr().err
    what = f"dist_trainer: interrupted before the first step ({number.name})"
    assert said == what + (": SLURM's time limit for the job\n" if is_said else "\n")


def test_a_folder_that_is_gone_keeps_nobody_from_being_told(tmp_path: Path) -> None:
    RunRecord(tmp_path / "gone").failed(Trouble("rank 0 on n1 ended with status 1", 1, rank=0))
    assert not (tmp_path / "gone").exists()
