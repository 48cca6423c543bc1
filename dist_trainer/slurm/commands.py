"""Runs SLURM's programs; nothing else here does."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dist_trainer.errors import UserError

LIMIT_S = 60.0
# Of the SLURM_ variables, those that do not describe an allocation around this process.
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str


def is_here() -> bool:
    return shutil.which("scontrol") is not None


def ask(argv: Sequence[str], environ: Mapping[str, str]) -> Answer:
    """Runs one of SLURM's programs. Raises UserError if it is not installed or does not answer in time."""
    if shutil.which(argv[0]) is None:
        raise UserError(
            f"{argv[0]} is not installed.",
            where="PATH",
            hint="run this on a login node of the cluster, or add --dry-run to see the script that would be submitted",
        )
    try:
        done = subprocess.run(
            list(argv),
            env=outside_a_job(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"SLURM does not answer: {argv[0]} took more than {LIMIT_S:.0f} s.",
            hint="look with `scontrol ping` whether its controller is up",
        ) from error
    return Answer(done.returncode, done.stdout, done.stderr.strip())


def outside_a_job(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables of an allocation, and without those that change SLURM's output formats."""
    kept = {name: value for name, value in environ.items() if not name.startswith("SLURM_") or name in _KEPT}
    # Without this, long lists of array tasks are truncated.
    return kept | {"SLURM_BITSTR_LEN": "0"}
