"""RUN_DIR/resolved/launch.json: what was started, for people and for the report, without secrets."""

from __future__ import annotations

import json
from pathlib import Path

from dist_trainer.cluster.topology import render_include
from dist_trainer.disk import write_text
from dist_trainer.encoding import all_as_utf8
from dist_trainer.launch.guards.job import Job
from dist_trainer.launch.plan import LaunchRequest
from dist_trainer.redact import redacted_argv, redacted_env


def write_launch_record(launcher: str, request: LaunchRequest, job: Job, run_dir: Path, *, start_time_s: float) -> None:
    """Enough to start the same ranks again, except for values of --env and of what looks like a key or a password."""
    record = {
        "launcher": launcher,
        "argv": redacted_argv(job.argv),
        "env": redacted_env(dict(job.env), (name for name, _ in request.env)),
        "num_ranks": request.num_ranks,
        "hosts": render_include(request.topology),
        "host": request.facts.hostname,
        "start_time_s": start_time_s,
    }
    write_text(run_dir / "resolved" / "launch.json", json.dumps(all_as_utf8(record), indent=2) + "\n")
