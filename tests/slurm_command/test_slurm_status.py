from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from run_folders import START_S, append, event, make_gpu_run

from dist_trainer.cluster.slurm import SLURM_START
from dist_trainer.endings import show_life
from dist_trainer.errors import UserError
from dist_trainer.records import EVENTS_FILE
from dist_trainer.report.reading.findings import read_findings
from dist_trainer.slurm.job_state import SlurmJob
from dist_trainer.slurm.status import Status, lines, one_line, read_statuses, status_of
from dist_trainer.slurm.submit import Submitted, record_path

NOW_S = START_S + 60.0
RUNNING = SlurmJob("12", "RUNNING", restarts=0, nodes="h[1-2]", start_s=START_S - 5, time_limit="12:00:00")


def status(job: SlurmJob | None, run_dir: Path | None, *, silence: str | None = None, now_s: float = NOW_S) -> Status:
    return status_of(
        job,
        read_findings(run_dir, now_s=now_s) if run_dir else None,
        job_id="12",
        run_dir="runs/a",
        output="runs/a/logs/slurm-12.out",
        silence=silence,
        now_s=now_s,
    )


def counted(restarts: int) -> dict[str, object]:
    return {SLURM_START: {"job_id": "12", "restarts": restarts}}


def failed_run(folder: Path, *, restarts: int = 0) -> Path:
    error = event("error", "the loss is not finite\n  where:    step 12", 30.0, type="RunError", **counted(restarts))
    return make_gpu_run(folder, ends=False, events=[error], start_facts=counted(restarts))


def test_a_job_in_the_queue() -> None:
    found = status(SlurmJob("12", "PENDING", reason="Resources", restarts=0), None)
    assert list(lines(found)) == [
        "job        12",
        "state      queued: it waits for free nodes (Resources)",
    ]
    assert not found.has_failed
    expected = status(SlurmJob("12", "PENDING", reason="Priority", start_s=START_S), None)
    assert "; expected to start at 20" in expected.why


def test_a_job_that_has_just_begun() -> None:
    assert list(lines(status(RUNNING, None))) == [
        "job        12 on h[1-2]",
        "state      running for 1m 05s of 12:00:00",
        "output     runs/a/logs/slurm-12.out",
    ]


def test_a_job_that_runs_shows_its_newest_step_and_its_memory_against_the_target(tmp_path: Path) -> None:
    found = status(RUNNING, make_gpu_run(tmp_path / "run", ends=False))
    assert list(lines(found)) == [
        "job        12 on h[1-2]",
        "state      running for 1m 05s of 12:00:00",
        "step       12 (full context), loss 4.0000, 2.2K tokens/s",
        "memory     rank 0: 2.31 GB of 2.50 GB: met (42% below 4.00 GB)",
        "output     runs/a/logs/slurm-12.out",
    ]
    assert found.memory is not None
    assert (found.memory.peak_bytes, found.memory.target_bytes) == (2_310_000_000, 2_500_000_000)


def test_steps_from_before_a_requeue_are_not_taken_for_new_ones(tmp_path: Path) -> None:
    """SLURM's clock and the ranks' may differ: what counts is which start wrote the records."""
    again = SlurmJob("12", "RUNNING", restarts=2, start_s=NOW_S - 3, time_limit="UNLIMITED")
    found = status(again, make_gpu_run(tmp_path / "run", ends=False, start_facts=counted(1)))
    assert list(lines(found))[:3] == [
        "job        12, requeued 2 times",
        "state      running for 3.0s",
        "step       12 (full context), loss 4.0000, 2.2K tokens/s; that was before the job was requeued, "
        "and no step is done since",
    ]
    begun = [event("start", "again", 30.0, **counted(2)), event("phase", "phase 2: full context", 30.5, step=12)]
    found = status(again, make_gpu_run(tmp_path / "begun", ends=False, start_facts=counted(1), events=begun))
    assert found.newest is not None and not found.newest.is_of_this_start
    later = SlurmJob("12", "RUNNING", restarts=2, start_s=START_S + 10_000)
    found = status(later, make_gpu_run(tmp_path / "clock", ends=False, start_facts=counted(2)))
    assert found.newest is not None and found.newest.is_of_this_start


def test_a_run_that_came_to_its_end(tmp_path: Path) -> None:
    job = SlurmJob("12", "COMPLETED", exit_status=0, start_s=START_S)
    found = status(job, make_gpu_run(tmp_path / "run"))
    assert (found.stage, found.has_failed, found.error) == ("ended", False, None)
    assert "state      ended, COMPLETED: the run came to its end" in list(lines(found))


def test_a_run_that_failed_says_its_first_error(tmp_path: Path) -> None:
    found = status(SlurmJob("12", "FAILED", exit_status=1, start_s=START_S), failed_run(tmp_path / "run"))
    assert found.has_failed
    text = list(lines(found))
    assert "state      ended, FAILED: exit status 1: the run failed" in text
    assert text[-3:-1] == ["error      the loss is not finite", "             where:    step 12"]
    assert "the loss is not finite" in one_line(found)


def test_an_error_of_an_earlier_start_is_not_what_ended_the_job(tmp_path: Path) -> None:
    job = SlurmJob("12", "TIMEOUT", restarts=1, start_s=START_S + 40, time_limit="00:10:00")
    found = status(job, failed_run(tmp_path / "run"))
    assert (found.error, found.why) == (None, "its time was over (00:10:00)")
    own = status(job, failed_run(tmp_path / "own", restarts=1))
    assert own.error is not None and own.error.startswith("the loss is not finite")


def test_what_interrupted_a_run_is_said(tmp_path: Path) -> None:
    message = "interrupted at step 12 (SIGTERM)"
    run_dir = make_gpu_run(tmp_path / "run", ends=False, events=[event("interrupted", message, 30.0, rank=None)])
    assert f"error      {message}" in list(lines(status(SlurmJob("12", "TIMEOUT", start_s=START_S), run_dir)))
    unasked = status(None, run_dir, silence="there is no SLURM on this host")
    assert (unasked.stage, unasked.has_failed) == ("ended", True)
    assert unasked.why.endswith(f"by its records the run was {message}")


def test_a_failure_that_no_record_tells_is_in_the_output() -> None:
    assert "the end of the output says more" in status(SlurmJob("12", "FAILED", exit_status=2), None).why


@pytest.mark.parametrize("state", ["TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY", "CANCELLED", "FAILED"])
def test_whatever_is_not_the_runs_end_is_a_failure(state: str) -> None:
    found = status(SlurmJob("12", state), None)
    assert (found.stage, found.has_failed) == ("ended", True)
    assert found.why


def test_when_slurm_has_forgotten_the_job_the_records_say_how_it_ended(tmp_path: Path) -> None:
    finished = status(None, make_gpu_run(tmp_path / "finished"))
    assert (finished.stage, finished.has_failed) == ("ended", False)
    assert finished.why == "SLURM no longer knows the job; by its records the run finished at step 12"
    failed = status(None, failed_run(tmp_path / "failed"))
    assert (failed.stage, failed.has_failed, failed.error is not None) == ("ended", True, True)
    killed = status(None, make_gpu_run(tmp_path / "killed", ends=False))
    assert (killed.stage, killed.has_failed) == ("ended", True)
    assert "no end is recorded; the last record was written 36.0s ago" in killed.why
    never = status(None, None)
    assert (never.stage, never.has_failed) == ("ended", True)
    assert "nothing was recorded" in never.why


def test_when_nobody_can_be_asked_a_run_that_records_still_runs(tmp_path: Path) -> None:
    silence = "there is no SLURM on this host"
    running = make_gpu_run(tmp_path / "running", ends=False)
    found = status(None, running, silence=silence)
    assert (found.stage, found.has_failed) == ("running", False)
    assert f"state      running: {silence}; by its records: running, step 12" in list(lines(found))
    later = status(None, running, silence=silence, now_s=NOW_S + 10_000)
    assert later.stage == "running" and "whether it still runs cannot be seen from here" in later.why
    life = show_life(running / "records" / EVENTS_FILE)
    dead = status(None, make_gpu_run(tmp_path / "dead", ends=False, start_facts=life), silence=silence)
    assert (dead.stage, dead.has_failed) == ("ended", True)
    assert "nothing writes any more" in dead.why
    assert status(None, None, silence=silence).stage == "unknown"
    assert status(None, failed_run(tmp_path / "failed"), silence=silence).has_failed


def submitted(folder: Path, tasks: tuple[int, ...] = ()) -> Path:
    path = record_path(folder)
    path.parent.mkdir(parents=True)
    record = Submitted("12", "job.sbatch", "logs/slurm-12_%a.out", tasks, 2, {}, (), START_S)
    path.write_text(json.dumps(asdict(record)))
    return folder


@pytest.fixture
def nobody_to_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))


@pytest.mark.usefixtures("nobody_to_ask")
def test_an_array_has_a_line_for_each_task_and_a_task_its_own(tmp_path: Path) -> None:
    folder = submitted(tmp_path / "array", (0, 1, 2))
    make_gpu_run(folder / "task-1")
    found = read_statuses(folder, {})
    assert [(one.job_id, one.stage) for one in found] == [("12_0", "unknown"), ("12_1", "ended"), ("12_2", "unknown")]
    assert found[2].output == "logs/slurm-12_2.out"
    (one,) = read_statuses(folder / "task-1", {})
    assert one.job_id == "12_1"
    assert one.newest is not None and one.newest.step == 12


@pytest.mark.usefixtures("nobody_to_ask")
def test_what_was_not_submitted_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_statuses(tmp_path / "nowhere", {})
    with pytest.raises(UserError, match="No job was submitted"):
        read_statuses(make_gpu_run(tmp_path / "run"), {})
    with pytest.raises(UserError, match="No job was submitted"):
        read_statuses(make_gpu_run(submitted(tmp_path / "array", (0, 1)) / "task-7"), {})
    broken = submitted(tmp_path / "broken")
    append(record_path(broken), "}")
    with pytest.raises(UserError, match="cannot be read"):
        read_statuses(broken, {})
