"""The files of a checkpoint: the engine's own, each rank's random states, and the card that describes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_trainer.checkpoints import card, find
from dist_trainer.checkpoints.card import Made
from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.position import Position
from dist_trainer.train import schedule
from dist_trainer.train.hyperparameters import Hyperparameters


def save(engine: Any, checkpoints_dir: Path, position: Position, made_by: Made) -> Path:
    """Writes checkpoints/step-N. Collective. When all files are written, rank 0 writes the card, then `latest`."""
    folder = checkpoints_dir / find.name_of(position.step)
    if dist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        card.remove(folder)
    # No rank may write into a folder whose old card still says that it is complete.
    dist.barrier()
    torch.save(_random_state(), folder / _random_file())
    engine.save_checkpoint(str(checkpoints_dir), tag=folder.name, save_latest=False)
    if dist.get_rank() == 0:
        card.write(folder, position, made_by)
        find.write_latest(checkpoints_dir, position.step)
    return folder


def load(engine: Any, found: Found, *, with_random_state: bool) -> Position:
    """Restores weights, the optimizer's moments, the reached loss scale and, if asked, random states. Collective.

    Rates and all other settings stay those that the engine was built with; the schedule is advanced to where it would
    be if it had been in force from the first step. Raises UserError for files that cannot be loaded.
    """
    asked = Hyperparameters.of(engine.optimizer)
    random_file = found.folder / _random_file()
    try:
        loaded, _ = engine.load_checkpoint(
            str(found.folder.parent.resolve()), tag=found.folder.name, load_lr_scheduler_states=False
        )
        if loaded is None:
            raise ValueError("DeepSpeed finds no checkpoint there")
        random_state = torch.load(random_file, weights_only=True)
    except Exception as error:
        if not _may_come_of_a_file(error):
            raise
        # DeepSpeed may fail in many ways here: unpickling, archives, missing states.
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        raise find.cannot_be_loaded(found.folder, f"cannot be loaded ({text})") from error
    asked.put_back(engine.optimizer)
    if engine.lr_scheduler is not None:
        schedule.advance(engine.lr_scheduler, engine.global_steps - engine.skipped_steps)
    if with_random_state:
        torch.set_rng_state(random_state["cpu"])
        if "cuda" in random_state:
            torch.cuda.set_rng_state(random_state["cuda"])
    return found.card.position


def _may_come_of_a_file(error: Exception) -> bool:
    """False if the device is out of memory or another rank is gone, for which gloo has no exception type of its own."""
    return not isinstance(error, torch.OutOfMemoryError | dist.DistError) and "gloo" not in str(error)


def _random_file() -> str:
    return f"random-rank-{dist.get_rank()}.pt"


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
