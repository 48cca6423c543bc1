"""What is checked before anything is made or built: both files, and the checkpoint to resume from."""

from __future__ import annotations

from pathlib import Path

from dist_trainer.checkpoints.changed import made_by, refuse_another_kind
from dist_trainer.checkpoints.find import Resume, find
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import ResolvedRun, resolve


def check_before_start(
    request: Request, *, world_size: int, resume: str, run_dir: Path | None, with_files: bool = True
) -> tuple[Resume, ResolvedRun]:
    """What `resume` comes to in the run's folder, and the run on a device that can do everything.

    Raises UserError for a mistake in either file, or in what overrides them, and for a checkpoint that is not whole or
    not of such a run. `with_files` is that of `find`.
    """
    resumed = find(resume, run_dir, with_files=with_files)
    resolved = resolve(request, world_size=world_size, device=ANY_DEVICE, done=resumed.phases)
    if resumed.found is not None:
        now = made_by(resolved, world_size=world_size, data={})
        refuse_another_kind(resumed.found, now, is_device_known=False)
    return resumed, resolved
