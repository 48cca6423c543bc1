"""What SLURM knows of a job: asks its controller, then its accounting."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dist_trainer.errors import UserError
from dist_trainer.slurm.commands import ask, is_here
from dist_trainer.slurm.notation import parse_array, parse_moment, records_of
from dist_trainer.units import whole_number

_UNKNOWN_JOB = "Invalid job id"
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_RUNNING = ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT")
_ACCOUNTING_FIELDS = ("JobID", "State", "ExitCode", "Start", "End", "NodeList", "Reason")
_EXIT_CODE = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")


@dataclass(frozen=True)
class SlurmJob:
    """A job, or one task of an array. Times are since the epoch; None is what SLURM does not say.

    `exit_status` is 128 + N if signal N ended the batch script. `start_s` of a pending job is SLURM's estimate.
    """

    job_id: str
    state: str
    reason: str | None = None
    exit_status: int | None = None
    restarts: int | None = None
    nodes: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    time_limit: str | None = None

    @property
    def waits(self) -> bool:
        return self.state in _WAITING

    @property
    def runs(self) -> bool:
        return self.state in _RUNNING


@dataclass(frozen=True)
class Asked:
    """`by_task`: task number -> job; the key is None for a job that is no array.

    A task that SLURM does not know (any more) is missing. `silence`: why SLURM could not be asked, None if it was.
    """

    by_task: Mapping[int | None, SlurmJob]
    silence: str | None = None


def ask_for_job(job_id: str, tasks: Sequence[int], environ: Mapping[str, str]) -> Asked:
    """Asks the controller, then the accounting for tasks that the controller does not know."""
    if not is_here():
        return Asked({}, "there is no SLURM on this host")
    try:
        answer = ask(("scontrol", "show", "job", "--oneliner", job_id), environ)
    except UserError as error:
        return Asked({}, error.problem)
    if answer.status != 0 and _UNKNOWN_JOB not in answer.err:
        return Asked({}, f"SLURM does not answer: {answer.err}")
    known = parse_controller(answer.out)
    wanted: set[int | None] = {*tasks} if tasks else {None}
    if wanted <= set(known) or shutil.which("sacct") is None:
        return Asked(known)
    fields = ",".join(_ACCOUNTING_FIELDS)
    question = ("sacct", "--jobs", job_id, "--allocations", "--noheader", "--parsable2", f"--format={fields}")
    try:
        accounted = ask(question, environ)
    except UserError:
        # Without accounting the caller can still use the run's own records.
        return Asked(known)
    return Asked({**parse_accounting(accounted.out), **known} if accounted.status == 0 else known)


def parse_controller(text: str) -> dict[int | None, SlurmJob]:
    """From `scontrol show job --oneliner`. Pending tasks of an array share one line."""
    found: dict[int | None, SlurmJob] = {}
    for fields in records_of(text, "JobId"):
        array_id = fields.get("ArrayJobId")
        tasks: tuple[int | None, ...] = (None,)
        if array_id is not None and "ArrayTaskId" in fields:
            try:
                tasks = parse_array(fields["ArrayTaskId"])
            except ValueError:
                # Of very many pending tasks SLURM writes only the first ones, and "...".
                continue
        for task in tasks:
            found[task] = SlurmJob(
                job_id=fields["JobId"] if task is None else f"{array_id}_{task}",
                state=fields.get("JobState", "UNKNOWN"),
                reason=_said(fields.get("Reason")),
                exit_status=_exit_status(fields.get("ExitCode")),
                restarts=whole_number(fields.get("Restarts", "")),
                nodes=_said(fields.get("NodeList")),
                start_s=parse_moment(fields.get("StartTime", "")),
                end_s=parse_moment(fields.get("EndTime", "")),
                time_limit=_said(fields.get("TimeLimit")),
            )
    return found


def parse_accounting(text: str) -> dict[int | None, SlurmJob]:
    """From `sacct --parsable2` with _ACCOUNTING_FIELDS; the last line about a job is its newest start."""
    found: dict[int | None, SlurmJob] = {}
    for line in text.splitlines():
        values = dict(zip(_ACCOUNTING_FIELDS, line.split("|"), strict=False))
        if len(values) < len(_ACCOUNTING_FIELDS) or not values["State"]:
            continue
        _, underscore, task = values["JobID"].partition("_")
        number = whole_number(task)
        if underscore and number is None:
            continue
        found[number] = SlurmJob(
            job_id=values["JobID"],
            # May read 'CANCELLED by 1000'.
            state=values["State"].partition(" ")[0],
            reason=_said(values["Reason"]),
            exit_status=_exit_status(values["ExitCode"]),
            nodes=_said(values["NodeList"]),
            start_s=parse_moment(values["Start"]),
            end_s=parse_moment(values["End"]),
        )
    return found


def _said(text: str | None) -> str | None:
    return None if text in (None, "", "None", "(null)", "None assigned", "Unknown") else text


def _exit_status(text: str | None) -> int | None:
    match = _EXIT_CODE.fullmatch(text or "")
    if match is None:
        return None
    status, signal = int(match.group(1)), int(match.group(2))
    return 128 + signal if signal else status
