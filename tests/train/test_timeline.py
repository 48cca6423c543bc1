from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dist_trainer.cause import CAUSE_FD
from dist_trainer.cluster.environments import LAUNCH_PROCESS
from dist_trainer.cluster.process_table import started_ticks
from dist_trainer.endings import Start
from dist_trainer.records import START_ENDED, StageRecord, read_records, start_file
from dist_trainer.train.timeline import Timeline, before_main


def recorded(run_dir: Path, rank: int = 0) -> list[StageRecord]:
    return list(read_records(run_dir / "records" / start_file(rank), StageRecord))


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAUSE_FD, str(os.pipe()[1]))


def test_what_came_before_the_folder_was_known_is_written_with_it_and_then_each_stage_as_it_begins(
    tmp_path: Path,
) -> None:
    timeline = Timeline()
    timeline.begin("imports")
    timeline.keep(Start(tmp_path, 70), 3)
    assert [one.stage for one in recorded(tmp_path, 3)] == ["spawn", "files", "imports"]
    timeline.begin("engine")
    assert recorded(tmp_path, 3)[-1].stage == "engine"
    timeline.end(compile_s=0.5)
    records = recorded(tmp_path, 3)
    assert (records[-1].stage, records[-1].compile_s) == (START_ENDED, 0.5)
    assert {(one.rank, one.start_id, one.pid) for one in records} == {(3, 70, os.getpid())}
    moments = [one.monotonic_s for one in records]
    assert moments == sorted(moments)


@pytest.mark.usefixtures("guarded")
def test_a_rank_of_launch_that_fails_before_the_ranks_met_leaves_how_far_it_came(tmp_path: Path) -> None:
    timeline = Timeline()
    timeline.begin("data")
    timeline.keep_of_failed(tmp_path, 1)
    assert recorded(tmp_path, 1)[-1].stage == "data"


def test_without_a_guard_it_writes_nothing_because_the_folder_may_be_another_runs(tmp_path: Path) -> None:
    Timeline().keep_of_failed(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("guarded")
def test_it_makes_no_folder_for_a_run_that_failed_before_it_had_one(tmp_path: Path) -> None:
    Timeline().keep_of_failed(tmp_path / "none", 1)
    Timeline().keep_of_failed(None, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("guarded")
def test_under_launch_the_stages_begin_with_its_process_and_the_guards() -> None:
    own = os.getpid()
    environ = {**os.environ, LAUNCH_PROCESS: f"{own}:{started_ticks(own)}"}
    stages = before_main(environ)
    assert [stage for stage, _ in stages] == ["launch", "guard", "spawn"]
    assert stages[0][1] == pytest.approx(stages[2][1], abs=0.02)
    assert stages[1][1] <= stages[2][1]


@pytest.mark.parametrize("launch", ["", "x", "OWN:1", "999999999:1", "1", "²:1"])
def test_on_another_host_than_launchs_they_begin_with_its_own_process(launch: str) -> None:
    """There that number is no process's, or another's."""
    ((stage, at_s),) = before_main({LAUNCH_PROCESS: launch.replace("OWN", str(os.getpid()))})
    assert stage == "spawn"
    assert 0 <= at_s <= time.monotonic()
