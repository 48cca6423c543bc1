"""The thin edge of a launch: from a plan to an exit status."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from dist_trainer.errors import UserError
from dist_trainer.launch.plan import LaunchPlan
from dist_trainer.launch.processes import signal_name
from dist_trainer.launch.supervise import GRACE_S, supervise

_PYTHON_MODULES = {"torchrun": "torch", "deepspeed": "deepspeed"}
# As we start them these say nothing of a rank that was killed; a killed rank cannot say it either.
_SILENT_LAUNCHERS = ("deepspeed", "mpirun")
_DEBIAN_PACKAGES = {"mpirun": "openmpi-bin", "srun": "slurm-client"}


def run_plan(
    plan: LaunchPlan, run_dir: Path, environ: Mapping[str, str], *, hostname: str, grace_s: float = GRACE_S
) -> int:
    """Records the plan in RUN_DIR/resolved/launch.json, runs it, and returns the exit status of the ranks."""
    write_launch_record(plan, run_dir, hostname=hostname, start_time_s=time.time())
    # What was printed so far must stand before what the ranks print.
    sys.stdout.flush()
    ending = supervise(plan.argv, {**environ, **dict(plan.env)}, grace_s=grace_s)
    status = rank_status(plan.launcher, ending.status)
    if plan.launcher in _SILENT_LAUNCHERS and ending.stopped_by is None and status > 128:
        print(f"a rank was killed by {signal_name(status - 128)}", file=sys.stderr)
    return status


def rank_status(launcher: str, status: int) -> int:
    """The exit status of the ranks. DeepSpeed's launcher says 256 - N when signal N ended one: 247 -> 137."""
    if launcher == "deepspeed" and 256 - 32 < status < 256:
        return 128 + 256 - status
    return status


def require_launcher(launcher: str) -> None:
    """Raises UserError when the launcher is not installed here."""
    module = _PYTHON_MODULES.get(launcher)
    if module is not None:
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"{module} is not installed for this Python.",
                where=sys.executable,
                hint="run ./launch.sh, which makes an environment that has it",
            )
    elif shutil.which(launcher) is None:
        raise UserError(
            f"{launcher} is not installed.",
            where="PATH",
            hint=f"install it (Debian: apt-get install {_DEBIAN_PACKAGES[launcher]}), or use --launcher torchrun",
        )


def write_launch_record(plan: LaunchPlan, run_dir: Path, *, hostname: str, start_time_s: float) -> None:
    """RUN_DIR/resolved/launch.json: enough to start the same ranks again."""
    record = {
        "launcher": plan.launcher,
        "argv": list(plan.argv),
        "env": dict(plan.env),
        "num_ranks": plan.num_ranks,
        "host": hostname,
        "start_time_s": start_time_s,
    }
    path = run_dir / "resolved" / "launch.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
