"""Submits a run: writes the script and the request into the run's folder, and hands the script to sbatch."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from dist_trainer import typed_json
from dist_trainer.encoding import all_as_utf8
from dist_trainer.errors import UserError
from dist_trainer.slurm.commands import ask
from dist_trainer.slurm.job_request import JobRequest
from dist_trainer.typed_json import Count, Seconds

RECORD_FILE = "slurm.json"
SCRIPT_FILE = "job.sbatch"


@dataclass(frozen=True)
class Submitted:
    """RUN_DIR/resolved/slurm.json: a job that SLURM accepted. `tasks`: the task numbers of an array."""

    job_id: Annotated[str, MinLen(1)]
    script: str
    output: str
    tasks: tuple[Count, ...]
    num_ranks: Count
    asked: dict[str, Any]
    arguments: tuple[str, ...]
    submit_time_s: Seconds


def record_path(run_dir: Path) -> Path:
    return run_dir / "resolved" / RECORD_FILE


def read_submitted(run_dir: Path) -> Submitted | None:
    """None if no job was submitted for this folder. Raises UserError for a file that cannot be read."""
    path = record_path(run_dir)
    try:
        return typed_json.read(path, Submitted)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, typed_json.DamagedError) as error:
        raise UserError("This record of a job cannot be read.", where=str(path), found=str(error)) from error


def submit(
    text: str,
    run_dir: Path,
    request: JobRequest,
    environ: Mapping[str, str],
    *,
    output: str,
    tasks: tuple[int, ...],
    num_ranks: int,
    arguments: tuple[str, ...],
    is_private: bool = False,
) -> Submitted:
    """Submits the script as RUN_DIR/resolved/job.sbatch. `output`: path of the output in sbatch's pattern.
    `is_private`: only this user may read the script.

    Raises UserError if SLURM does not accept it, and then leaves nothing behind.
    """
    script = run_dir / "resolved" / SCRIPT_FILE
    folders = [script.parent, run_dir / "logs"]
    earlier = None
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        if script.exists():
            earlier = script.read_bytes()
        if is_private:
            script.touch(mode=0o600)
            script.chmod(0o600)
        # File names in the script keep their bytes, even if they are not UTF-8.
        script.write_bytes(text.encode(errors="surrogateescape"))
    except OSError as error:
        raise UserError("The job's script cannot be written.", where=str(script), found=error.strerror) from error
    answer = ask(("sbatch", "--parsable", str(script)), environ)
    if answer.status != 0:
        _put_back(script, earlier, (*folders, run_dir))
        raise UserError(
            "SLURM does not take the job.",
            where="sbatch",
            found=answer.err.replace("sbatch: error: ", "").replace("\n", "; ") or f"status {answer.status}",
            hint="see the script with --dry-run, and what the cluster has with `sinfo` and `scontrol show partition`",
        )
    job_id = answer.out.strip().partition(";")[0]
    output = output.replace("%A_%a" if tasks else "%j", f"{job_id}_%a" if tasks else job_id).replace("%%", "%")
    record = Submitted(
        job_id=job_id,
        script=str(script),
        output=output,
        tasks=tasks,
        num_ranks=num_ranks,
        asked={name: value for name, value in dataclasses.asdict(request).items() if value not in (None, ())},
        arguments=arguments,
        submit_time_s=time.time(),
    )
    record_path(run_dir).write_text(
        json.dumps(all_as_utf8(dataclasses.asdict(record)), indent=2) + "\n", encoding="utf-8"
    )
    return record


def _put_back(script: Path, earlier: bytes | None, folders: tuple[Path, ...]) -> None:
    if earlier is not None:
        script.write_bytes(earlier)
        return
    script.unlink()
    for folder in folders:
        # A folder that is not empty was there before.
        with suppress(OSError):
            folder.rmdir()
