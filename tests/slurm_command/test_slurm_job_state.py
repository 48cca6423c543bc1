from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from ranks import run
from shown import ARRAY, COMPLETED, DRAINED

import slurm
from dist_trainer.slurm.job_state import Asked, SlurmJob, ask_for_job, parse_accounting, parse_controller
from dist_trainer.slurm.notation import parse_moment
from dist_trainer.slurm.words import reason_in_words, state_in_words


def test_a_job_that_has_ended() -> None:
    assert parse_controller(COMPLETED) == {
        None: SlurmJob(
            job_id="1",
            state="COMPLETED",
            exit_status=0,
            restarts=2,
            nodes="h[1-2]",
            start_s=parse_moment("2026-11-24T18:15:00"),
            end_s=parse_moment("2026-11-24T18:15:30"),
            time_limit="365-00:00:00",
        )
    }


def test_a_job_that_waits() -> None:
    (job,) = parse_controller(DRAINED).values()
    assert (job.waits, job.runs, job.nodes, job.start_s) == (True, False, None, None)
    assert "down, drained or reserved" in reason_in_words(job.reason)


def test_the_tasks_of_an_array_that_wait_together() -> None:
    found = parse_controller(ARRAY)
    assert {task: (job.job_id, job.state) for task, job in found.items()} == {
        0: ("23_0", "RUNNING"),
        1: ("23_1", "PENDING"),
        2: ("23_2", "PENDING"),
    }


def test_a_job_that_a_signal_ended() -> None:
    (job,) = parse_controller(COMPLETED.replace("ExitCode=0:0", "ExitCode=0:9")).values()
    assert job.exit_status == 137


def test_no_job_at_all() -> None:
    assert parse_controller("") == {}


def test_the_accounting() -> None:
    text = (
        "7|PREEMPTED|0:0|2026-11-24T10:00:00|2026-11-24T10:30:00|h1|None\n"
        "7|CANCELLED by 1000|0:15|2026-11-24T11:00:00|2026-11-24T12:00:00|h[1-2]|None\n"
        "9_1|COMPLETED|0:0|2026-11-24T11:00:00|2026-11-24T12:00:00|h1|None\n"
        "9_[2-3]|PENDING|0:0|Unknown|Unknown|None assigned|Priority\n"
        "slurm says something else\n"
    )
    found = parse_accounting(text)
    assert set(found) == {None, 1}
    assert (found[None].state, found[None].exit_status, found[None].nodes) == ("CANCELLED", 143, "h[1-2]")
    assert (found[1].job_id, found[1].state) == ("9_1", "COMPLETED")


@pytest.mark.cluster
def test_what_the_controller_has_forgotten_the_accounting_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = slurm.why_no_slurm(with_accounting=True)
    if reason is not None:
        pytest.skip(reason)

    def submit(*words: str) -> str:
        ended = run(["sbatch", "--parsable", "--output=/dev/null", *words], cwd=tmp_path, environ=environ)
        assert ended.status == 0, ended.output
        return ended.output.strip()

    with slurm.one_host_slurm(tmp_path / "slurm", with_accounting=True) as environ:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        jobs = {
            submit("--wrap=exit 3"): (),
            submit("--wrap=kill -KILL $$"): (),
            submit("--array=0-1", "--wrap=exit $SLURM_ARRAY_TASK_ID"): (0, 1),
        }
        told: dict[str, Asked] = {}
        for job_id, tasks in jobs.items():
            slurm.wait_for_job(environ, job_id)
            told[job_id] = ask_for_job(job_id, tasks, environ)
        deadline_s = time.monotonic() + 60.0
        while run(["scontrol", "show", "jobs"], cwd=tmp_path, environ=environ).output.count("JobId="):
            assert time.monotonic() < deadline_s, "the controller forgets none"
            time.sleep(0.2)
        for job_id, tasks in jobs.items():
            # Of these the accounting says nothing.
            unsaid = {"reason": None, "restarts": None, "time_limit": None}
            expected = {task: replace(job, **unsaid) for task, job in told[job_id].by_task.items()}
            assert ask_for_job(job_id, tasks, environ) == Asked(expected)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (None, "SLURM has not looked at it yet"),
        ("Resources", "it waits for free nodes (Resources)"),
        ("DependencyNeverSatisfied", "it never starts"),
        ("Dependency", "it waits for another job"),
        ("QOSMaxGRESPerUser", "its QOS gives no more"),
        ("InvalidQOS", "its QOS may not run here"),
        ("AssocGrpGRES", "its account or user may have no more"),
        ("ReqNodeNotAvail,_UnavailableNodes:h1", "(ReqNodeNotAvail,_UnavailableNodes:h1)"),
        ("SomethingNew", "SLURM says: SomethingNew"),
    ],
)
def test_why_a_job_waits(reason: str | None, said: str) -> None:
    assert said in reason_in_words(reason)


@pytest.mark.parametrize(
    ("state", "status", "said"),
    [
        ("COMPLETED", 0, "the run came to its end"),
        ("FAILED", 1, "exit status 1: the run failed"),
        ("FAILED", 2, "exit status 2: a mistake"),
        ("FAILED", 3, "--strict"),
        ("FAILED", 137, "SIGKILL"),
        ("FAILED", 9, "exit status 9"),
        ("NODE_FAIL", 0, "one of its nodes failed"),
        ("OUT_OF_MEMORY", 0, "--mem"),
        ("PREEMPTED", 0, "another job took its nodes"),
    ],
)
def test_what_ended_a_job(state: str, status: int, said: str) -> None:
    assert said in state_in_words(state, status)
