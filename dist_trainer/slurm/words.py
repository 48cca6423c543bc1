"""SLURM's reasons and states in plain words."""

from __future__ import annotations

from dist_trainer.errors import EXIT_FAILURE, EXIT_HOST_LOST, EXIT_TARGET_MISSED, EXIT_USER_ERROR
from dist_trainer.launch.processes import signal_name

# Why a job is pending. The first prefix that matches counts: SLURM may append details to a reason.
_REASONS = (
    ("Resources", "it waits for free nodes"),
    ("Priority", "jobs of higher priority are in front of it"),
    ("BeginTime", "its time to begin has not come (a job that was requeued waits up to two minutes)"),
    ("Dependency", "it waits for another job"),
    ("DependencyNeverSatisfied", "the job that it waits for did not end as it should: it never starts"),
    ("JobHeldUser", "it is held; free it with `scontrol release`"),
    ("JobHeldAdmin", "an administrator holds it"),
    ("JobArrayTaskLimit", "as many tasks of the array run as may run at once"),
    ("Nodes_required_for_job_are_DOWN", "nodes that it needs are down, drained or reserved"),
    ("ReqNodeNotAvail", "nodes that it asks for are not available"),
    ("PartitionNodeLimit", "it asks for more nodes than the partition gives: it never starts"),
    ("PartitionTimeLimit", "it asks for more time than the partition gives: it never starts"),
    ("PartitionDown", "the partition is down"),
    ("PartitionInactive", "the partition is not active"),
    ("BadConstraints", "no node can meet what it asks for: it never starts"),
    ("Reservation", "it waits for its reservation"),
    ("Licenses", "it waits for a licence"),
    ("Cleaning", "what is left of its last start is being cleared away"),
    ("launch_failed_requeued_held", "it could not be started, and is held; free it with `scontrol release`"),
    ("job_requeued_in_held_state", "it was requeued and is held; free it with `scontrol release`"),
    ("InvalidAccount", "its account may not run here"),
    ("InvalidQOS", "its QOS may not run here"),
    ("QOS", "its QOS gives no more at the moment"),
    ("Assoc", "its account or user may have no more at the moment"),
    ("MaxCpuPerAccount", "its account may have no more CPUs at the moment"),
)

_STATES = {
    "COMPLETED": "the run came to its end",
    "TIMEOUT": "its time was over",
    "PREEMPTED": "another job took its nodes",
    "NODE_FAIL": "one of its nodes failed",
    "BOOT_FAIL": "one of its nodes did not start",
    "OUT_OF_MEMORY": "it used up the memory of a host that it was given (--mem)",
    "CANCELLED": "it was cancelled",
    "DEADLINE": "it could not end before its deadline",
    "REVOKED": "another cluster runs it",
}

_STATUSES = {
    EXIT_FAILURE: "the run failed",
    EXIT_USER_ERROR: "a mistake in what was asked, or on a node",
    EXIT_TARGET_MISSED: "--strict: the memory target was missed, or is not known to be met",
    EXIT_HOST_LOST: "a node was lost: down, or cut off from the others",
}


def reason_in_words(reason: str | None) -> str:
    """Why a job is pending, with SLURM's own word for it."""
    if reason is None:
        return "SLURM has not looked at it yet"
    fits = [(start, words) for start, words in _REASONS if reason.startswith(start)]
    if not fits:
        return f"SLURM says: {reason}"
    return f"{max(fits, key=lambda fit: len(fit[0]))[1]} ({reason})"


def state_in_words(state: str, exit_status: int | None) -> str:
    """What ended a job, in words."""
    if state == "FAILED" and exit_status:
        return status_in_words(exit_status)
    return _STATES.get(state, "it failed" if state == "FAILED" else "")


def status_in_words(status: int) -> str:
    """An exit status of `launch` or of a signal, in words."""
    if status > 128:
        return f"exit status {status}: {signal_name(status - 128)} ended a rank or the script"
    words = _STATUSES.get(status)
    return f"exit status {status}" + (f": {words}" if words else "")
