"""What the command line told one rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dist_trainer.cluster.rank import RankInfo
from dist_trainer.config.request import Request


@dataclass(frozen=True)
class RankJob:
    """What one rank was told."""

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
