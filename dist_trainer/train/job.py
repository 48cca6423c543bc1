"""What the command line told one rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dist_trainer.cluster.rank import RankInfo
from dist_trainer.config.request import Request


@dataclass(frozen=True)
class RankJob:
    """`run_dir`: None if rank 0 is to make a folder. `resume`: 'auto', 'never', or a checkpoint's path. `max_steps`: of
    the whole run, over all its starts. `baseline`: the folder of the run to compare with. `init_from`: whose weights a
    run that resumes from nothing begins with.
    """

    request: Request
    rank: RankInfo
    run_dir: Path | None
    resume: str
    max_steps: int | None
    debug: bool
    measure_allocator: bool = False
    strict: bool = False
    baseline: Path | None = None
    force: bool = False
    init_from: Path | None = None
