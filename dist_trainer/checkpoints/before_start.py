"""What is checked before anything is started: both files, and the checkpoint to resume from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dist_trainer.checkpoints.changed import made_by, refuse_another_kind
from dist_trainer.checkpoints.find import Resume, find
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import ResolvedRun, resolve


def check_before_start(
    request: Request,
    *,
    world_size: int,
    resume: str,
    run_dir: Path | None,
    with_files: bool = True,
    damaged: Mapping[Path, str] | None = None,
) -> tuple[Resume, ResolvedRun]:
    """The checkpoint that `resume` selects in the run's folder, and the run resolved for a device that supports all.

    Raises UserError for a mistake in either file or its overrides, and for a checkpoint that is damaged or belongs to
    another kind of run. `with_files` and `damaged` as in `find`.
    """
    resumed = find(resume, run_dir, with_files=with_files, damaged=damaged)
    resolved = resolve(request, world_size=world_size, device=ANY_DEVICE, done=resumed.phases)
    if resumed.found is not None:
        now = made_by(resolved, world_size=world_size, data={})
        refuse_another_kind(resumed.found, now)
    return resumed, resolved
