"""The state of a submitted run: pending, running, or ended and why. From SLURM and from the run's own records."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dist_trainer.cluster.slurm import SLURM_START
from dist_trainer.endings import ERROR, INTERRUPTED
from dist_trainer.errors import UserError
from dist_trainer.memory.targets import Judgement
from dist_trainer.records import Event
from dist_trainer.report.reading.findings import Findings, read_findings
from dist_trainer.report.summary import summary_of
from dist_trainer.report.verdict import describe, fullest, label
from dist_trainer.slurm.job_state import Asked, SlurmJob, ask_for_job
from dist_trainer.slurm.submit import Submitted, read_submitted
from dist_trainer.slurm.words import reason_in_words, state_in_words
from dist_trainer.units import format_count, format_duration

Stage = Literal["queued", "running", "ended", "unknown"]

_TASK_FOLDER = re.compile(r"task-([0-9]{1,9})")


@dataclass(frozen=True)
class Newest:
    """The newest step. `is_of_this_start`: False if the job has been started again since."""

    step: int
    phase: str
    loss: float
    tokens_per_s: float
    time_s: float
    is_of_this_start: bool


@dataclass(frozen=True)
class FullestGpu:
    """The GPU with the highest peak so far; `text` is for people."""

    judgement: Judgement
    peak_bytes: int | None
    target_bytes: int | None
    text: str


@dataclass(frozen=True)
class Status:
    """One job, or one task of an array. `state`: SLURM's word, None if SLURM no longer knows the job.

    `why`: in words, why it is pending or what ended it. Times are since the epoch; `start_s` of a pending job is
    SLURM's estimate. `error`: the first error in the run's records since its last start; `problems`: what of the
    records cannot be read.
    """

    job_id: str
    run_dir: str
    stage: Stage
    has_failed: bool
    state: str | None
    why: str
    nodes: str | None
    requeued: int | None
    start_s: float | None
    end_s: float | None
    time_limit: str | None
    newest: Newest | None
    memory: FullestGpu | None
    error: str | None
    output: str
    problems: tuple[str, ...] = ()


def read_statuses(run_dir: Path, environ: Mapping[str, str], *, now_s: float | None = None) -> list[Status]:
    """One status for a job, or one per task of an array. Raises UserError if no job was submitted for the folder."""
    if not run_dir.is_dir():
        raise UserError("There is no such folder.", where="command line", found=str(run_dir), expected="a run's folder")
    job_dir, submitted, wanted = _find_submitted(run_dir)
    asked = ask_for_job(submitted.job_id, submitted.tasks, environ)
    now_s = time.time() if now_s is None else now_s
    if not submitted.tasks:
        return [_read_status(run_dir, submitted, None, asked, now_s)]
    tasks = submitted.tasks if wanted is None else (wanted,)
    return [_read_status(job_dir / f"task-{task}", submitted, task, asked, now_s) for task in tasks]


def _find_submitted(run_dir: Path) -> tuple[Path, Submitted, int | None]:
    """The folder for which the job was submitted, its record, and the array task if that task's folder was named."""
    submitted = read_submitted(run_dir)
    if submitted is not None:
        return run_dir, submitted, None
    match = _TASK_FOLDER.fullmatch(run_dir.resolve().name)
    parent = run_dir.resolve().parent
    submitted = read_submitted(parent) if match else None
    if match is not None and submitted is not None and int(match.group(1)) in submitted.tasks:
        return parent, submitted, int(match.group(1))
    raise UserError(
        "No job was submitted for this folder.",
        where="command line",
        found=str(run_dir),
        expected="a folder that `slurm submit` named",
        hint=f"for a run that was started otherwise: python -m dist_trainer report {run_dir}",
    )


def _read_status(run_dir: Path, submitted: Submitted, task: int | None, asked: Asked, now_s: float) -> Status:
    findings = read_findings(run_dir, now_s=now_s) if (run_dir / "records").is_dir() else None
    return status_of(
        asked.by_task.get(task),
        findings,
        job_id=submitted.job_id if task is None else f"{submitted.job_id}_{task}",
        run_dir=str(run_dir),
        output=submitted.output if task is None else submitted.output.replace("%a", str(task)),
        silence=asked.silence,
        now_s=now_s,
    )


def status_of(
    job: SlurmJob | None,
    findings: Findings | None,
    *,
    job_id: str,
    run_dir: str,
    output: str,
    silence: str | None,
    now_s: float,
) -> Status:
    """`job` is None if SLURM does not know it or could not be asked (`silence` says why). `findings` is None if nothing
    was recorded yet.
    """
    error = _error(findings, job)
    if job is None:
        stage, has_failed, why = _by_records(findings, silence, now_s)
    elif job.waits:
        stage, has_failed, why = "queued", False, _queued(job)
    elif job.runs:
        stage, has_failed, why = "running", False, _running(job, now_s)
    else:
        stage, has_failed = "ended", job.state != "COMPLETED"
        why = state_in_words(job.state, job.exit_status)
        if job.state == "TIMEOUT" and job.time_limit:
            why += f" ({job.time_limit})"
        if job.state == "FAILED" and error is None:
            why += "; the end of the output says more"
    return Status(
        job_id=job_id,
        run_dir=run_dir,
        stage=stage,
        has_failed=has_failed,
        state=job.state if job else None,
        why=why,
        nodes=job.nodes if job else None,
        requeued=job.restarts if job else None,
        start_s=job.start_s if job else None,
        end_s=job.end_s if job and stage == "ended" else None,
        time_limit=job.time_limit if job else None,
        newest=_newest(findings, job),
        memory=_memory(findings),
        error=error,
        output=output,
        problems=findings.problems if findings else (),
    )


def _queued(job: SlurmJob) -> str:
    why = reason_in_words(job.reason)
    if job.start_s is None:
        return why
    return f"{why}; expected to start at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(job.start_s))}"


def _running(job: SlurmJob, now_s: float) -> str:
    since = "" if job.start_s is None else f"for {format_duration(max(0.0, now_s - job.start_s))}"
    words = {
        "CONFIGURING": "its nodes are being made ready",
        "COMPLETING": "its last processes are being ended",
        "SUSPENDED": "it is suspended",
        "STOPPED": "it is stopped",
    }
    return ", ".join(part for part in (since, words.get(job.state)) if part)


def _by_records(findings: Findings | None, silence: str | None, now_s: float) -> tuple[Stage, bool, str]:
    """What the run's own records say, if SLURM says nothing. A job that SLURM has forgotten has ended."""
    lead = silence or "SLURM no longer knows the job"
    if findings is None:
        return (
            ("unknown", False, f"{lead}, and nothing is recorded")
            if silence
            else ("ended", True, f"{lead}, and nothing was recorded")
        )
    progress = findings.progress
    if progress.state == "finished":
        return "ended", False, f"{lead}; by its records the run {progress.text}"
    if progress.state == "failed":
        return "ended", True, f"{lead}; by its records the run failed"
    if progress.state == "interrupted":
        return "ended", True, f"{lead}; by its records the run was {progress.text}"
    if progress.state == "silent":
        return "ended", True, f"{lead}; by its records {progress.text}"
    ago = "" if progress.last_record_s is None else f" {format_duration(max(0.0, now_s - progress.last_record_s))} ago"
    if silence is None:
        return "ended", True, f"{lead}, and no end is recorded; the last record was written{ago or ' never'}"
    return "running", False, f"{lead}; by its records: {progress.text}"


def _error(findings: Findings | None, job: SlurmJob | None) -> str | None:
    if findings is None or findings.progress.error is None:
        return None
    of_starts = [event for event in findings.events if event.kind in ("start", ERROR, INTERRUPTED)]
    return findings.progress.error if _is_of_this_start(of_starts, job) else None


def _is_of_this_start(events: Sequence[Event], job: SlurmJob | None) -> bool:
    """Whether the newest of these events with SLURM's facts belongs to the start that SLURM counts now. True if no
    event has such facts, or SLURM does not count starts.
    """
    said = [event.facts[SLURM_START] for event in events if isinstance(event.facts.get(SLURM_START), dict)]
    if job is None or job.waits or job.restarts is None or not said:
        return True
    return bool(said[-1] == {"job_id": job.job_id, "restarts": job.restarts})


def _has_trained(events: Sequence[Event], newest: int, job: SlurmJob | None) -> bool:
    """Whether the newest step belongs to the start that SLURM counts now: its training began before that step."""
    starts = [place for place, event in enumerate(events) if event.kind == "start"]
    if not starts or SLURM_START not in events[starts[-1]].facts:
        return True
    begun = [event.facts.get("step") for event in events[starts[-1] :] if event.kind == "phase"]
    has_step = any(isinstance(step, int) and step < newest for step in begun)
    return has_step and _is_of_this_start([events[starts[-1]]], job)


def _newest(findings: Findings | None, job: SlurmJob | None) -> Newest | None:
    if findings is None or not len(findings.steps):
        return None
    steps = findings.steps
    return Newest(
        step=steps.numbers[-1],
        phase=steps.phases[-1],
        loss=steps.columns["loss"][-1],
        tokens_per_s=steps.columns["tokens_per_s"][-1],
        time_s=steps.columns["time_s"][-1],
        is_of_this_start=_has_trained(findings.events, steps.numbers[-1], job),
    )


def _memory(findings: Findings | None) -> FullestGpu | None:
    if findings is None:
        return None
    worst = fullest(summary_of(findings).verdicts)
    if worst is None:
        return None
    return FullestGpu(worst.judgement, worst.peak_bytes, worst.target_bytes, f"{label(worst)}: {describe(worst)}")


def lines(status: Status) -> Iterator[str]:
    """The lines about one job, for people."""
    where = f" on {status.nodes}" if status.nodes else ""
    yield f"job        {status.job_id}{where}{_requeued(status)}"
    yield f"state      {_state(status)}"
    if status.newest is not None:
        yield f"step       {_step(status.newest, status.stage)}"
    if status.memory is not None:
        yield f"memory     {status.memory.text}"
    if status.error:
        first, *others = status.error.splitlines()
        yield f"error      {first}"
        yield from (f"{'':<11}{line}" for line in others)
    if status.stage != "queued":
        yield f"output     {status.output}"
    yield from (f"notice     {problem}" for problem in status.problems)


def one_line(status: Status) -> str:
    """The line about one task of an array."""
    parts = [_state(status)]
    if status.newest is not None:
        parts.append(f"step {_step(status.newest, status.stage)}")
    if status.memory is not None and status.stage != "queued":
        parts.append(status.memory.text)
    if status.error:
        parts.append(status.error.splitlines()[0])
    return f"{status.job_id:<10} {'; '.join(parts)}"


def _state(status: Status) -> str:
    if status.stage == "ended":
        name = status.state or ("failed" if status.has_failed else "completed")
        return f"ended, {name}" + (f": {status.why}" if status.why else "")
    if status.stage == "running" and status.state is not None:
        limit = f" of {status.time_limit}" if status.time_limit and status.time_limit != "UNLIMITED" else ""
        return f"running {status.why}{limit}".rstrip()
    return f"{status.stage}: {status.why}"


def _requeued(status: Status) -> str:
    if not status.requeued:
        return ""
    return f", requeued {'once' if status.requeued == 1 else f'{status.requeued} times'}"


def _step(newest: Newest, stage: Stage) -> str:
    text = f"{newest.step} ({newest.phase}), loss {newest.loss:.4f}, {format_count(newest.tokens_per_s)} tokens/s"
    if stage == "running" and not newest.is_of_this_start:
        text += "; that was before the job was requeued, and no step is done since"
    return text
