from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import START_STAGES, append, write_lines, write_start

from dist_trainer.records import start_file
from dist_trainer.report.reading.starts import RankStart, Stage, read_starts

KILLED = (*START_STAGES[:3], ("engine", 5.0))


def read(run_dir: Path) -> tuple[RankStart, ...]:
    return read_starts(run_dir / "records")


def test_a_stage_ends_where_the_next_begins(tmp_path: Path) -> None:
    write_start(tmp_path, 0)
    (start,) = read(tmp_path)
    assert start.stages[:2] == (Stage("spawn", 0.0, 0.5), Stage("imports", 0.5, 3.0))
    assert (start.stages[-1], start.end_s) == (Stage("first step", 5.0, 7.0), 7.0)


def test_of_a_rank_that_was_killed_the_stage_is_known_in_which_it_was(tmp_path: Path) -> None:
    write_start(tmp_path, 0, KILLED)
    (start,) = read(tmp_path)
    assert (start.stages[-1], start.end_s) == (Stage("engine", 4.0, None), None)
    assert start.seconds_in("imports") == 2.5
    assert start.seconds_in("engine") is None
    assert start.seconds_in("first step") is None


def test_stages_of_one_name_are_added_up(tmp_path: Path) -> None:
    write_start(tmp_path, 0, (("imports", 0.0), ("opening", 2.0), ("imports", 2.5), ("ended", 4.0)))
    (start,) = read(tmp_path)
    assert start.seconds_in("imports") == 3.5


def test_what_was_compiled_is_taken_out_of_the_first_step(tmp_path: Path) -> None:
    *lines, last = write_start(tmp_path, 0)
    write_lines(tmp_path / "records" / start_file(0), [*lines, {**last, "compile_s": 1.25}])
    (start,) = read(tmp_path)
    assert start.stages[-2:] == (Stage("compile", 5.0, 6.25), Stage("first step", 6.25, 7.0))


def test_each_host_counts_from_its_own_first_process(tmp_path: Path) -> None:
    write_start(tmp_path, 0, (("launch", 0.5), *START_STAGES))
    write_start(tmp_path, 1)
    write_start(tmp_path, 2, [(stage, at_s + 9000) for stage, at_s in START_STAGES], host="h2")
    assert [start.begin_s for start in read(tmp_path)] == [0.0, 0.5, 0.0]


@pytest.mark.parametrize("later", [{"start_id": 700}, {"pid": 900}], ids=["events between", "no event between"])
def test_the_last_start_counts(tmp_path: Path, later: dict[str, object]) -> None:
    """Between the two the host may have been booted, and the clock begun anew."""
    first = write_start(tmp_path, 0, [(stage, at_s + 9000) for stage, at_s in START_STAGES])
    second = write_start(tmp_path, 0, KILLED, **later)
    write_lines(tmp_path / "records" / start_file(0), [*first, *second])
    (start,) = read(tmp_path)
    assert [stage.name for stage in start.stages] == ["spawn", "imports", "rendezvous", "engine"]


def test_a_rank_that_the_last_start_did_not_have_is_left_out(tmp_path: Path) -> None:
    write_start(tmp_path, 0, start_id=700)
    write_start(tmp_path, 1)
    assert [start.rank for start in read(tmp_path)] == [0]


def test_lines_that_are_damaged_or_half_written_are_left_out(tmp_path: Path) -> None:
    write_start(tmp_path, 0, KILLED)
    path = tmp_path / "records" / start_file(0)
    append(path, '{"stage": 3}\n{"stage": "first step", "rank": 0')
    left_out: dict[Path, int] = {}
    (start,) = read_starts(tmp_path / "records", left_out)
    assert start.stages[-1].name == "engine"
    assert left_out == {path: 1}


def test_without_records_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    assert read(tmp_path) == ()
    write_start(tmp_path, 0, [("ended", 3.0)])
    assert read(tmp_path) == ()


def test_seconds_never_fall_below_zero(tmp_path: Path) -> None:
    write_start(tmp_path, 0, (("spawn", 4.0), ("imports", 2.0), ("engine", 5.0), ("ended", 1.0)))
    (start,) = read(tmp_path)
    assert [stage.seconds for stage in start.stages] == [0.0, 1.0, 0.0]
