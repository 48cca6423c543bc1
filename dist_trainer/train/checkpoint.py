"""Checkpoints: the engine's own files, and beside them what made them, where the run was, and the random states."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_trainer.errors import UserError

CARD_FILE = "checkpoint.json"
LATEST_FILE = "latest"


@dataclass(frozen=True)
class Position:
    """How far a run has come. `steps_by_phase` counts optimizer steps done in each phase, by the phase's name."""

    step: int = 0
    steps_by_phase: dict[str, int] = field(default_factory=dict)

    def steps_in(self, phase: str) -> int:
        return self.steps_by_phase.get(phase, 0)

    def after_step(self, phase: str) -> Position:
        return Position(self.step + 1, {**self.steps_by_phase, phase: self.steps_in(phase) + 1})


def save(engine: Any, checkpoints_dir: Path, position: Position) -> Path:
    """Writes checkpoints/step-N on all ranks; the file `latest` names it once all of it is written."""
    tag = f"step-{position.step}"
    folder = checkpoints_dir / tag
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(_random_state(), folder / _random_file())
    if dist.get_rank() == 0:
        card = {"position": asdict(position), "made_by": _made_by(engine)}
        (folder / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    engine.save_checkpoint(str(checkpoints_dir), tag=tag)
    return folder


def load(engine: Any, folder: Path) -> Position:
    """Restores weights, optimizer, scheduler, loss scaler and random states from a checkpoint folder.

    Raises UserError when it was made by another number of ranks, another model, or another ZeRO stage or precision.
    """
    card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    expected, found = card["made_by"], _made_by(engine)
    for key, value in expected.items():
        if found.get(key) != value:
            raise UserError(
                f"the checkpoint {folder} was made by another kind of run",
                where="this run",
                key=key,
                found=found.get(key),
                expected=f"{value!r}, as {CARD_FILE} of the checkpoint says",
                hint="start the run as it was (RUN_DIR/resolved/), or anew with --resume never",
            )
    engine.load_checkpoint(str(folder.parent), tag=folder.name)
    random_state = torch.load(folder / _random_file(), weights_only=True)
    torch.set_rng_state(random_state["cpu"])
    if "cuda" in random_state:
        torch.cuda.set_rng_state(random_state["cuda"])
    return Position(**card["position"])


def find(resume: str, checkpoints_dir: Path) -> Path | None:
    """The checkpoint folder that `--resume auto|never|PATH` means, or None to start anew.

    `auto` is the newest of this run's folder, if it has any. PATH is a run's folder, its checkpoints folder, or one
    step-N folder; UserError when there is no checkpoint there.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return _newest(checkpoints_dir)
    path = Path(resume)
    if (path / CARD_FILE).is_file():
        return path
    newest = _newest(path / "checkpoints") or _newest(path)
    if newest is None:
        raise UserError(
            "no checkpoint to resume from",
            where="--resume",
            found=resume,
            expected="a run's folder with checkpoints, or one checkpoints/step-N folder",
            hint="use --resume auto for the newest of the run's folder, or --resume never",
        )
    return newest


def _newest(folder: Path) -> Path | None:
    latest = folder / LATEST_FILE
    if not latest.is_file():
        return None
    return folder / latest.read_text(encoding="utf-8").strip()


def _made_by(engine: Any) -> dict[str, Any]:
    """What has to be the same for the engine to load the checkpoint."""
    precision = "fp16" if engine.fp16_enabled() else "bf16" if engine.bfloat16_enabled() else "fp32"
    model = {f"model.{key}": value for key, value in engine.module.config.model_dump(exclude={"loss"}).items()}
    return {
        "world_size": dist.get_world_size(),
        "zero_stage": engine.zero_optimization_stage(),
        "precision": precision,
        **model,
    }


def _random_file() -> str:
    return f"random-rank-{dist.get_rank()}.pt"


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
