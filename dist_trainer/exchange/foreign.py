"""Which other program made what lies in a folder: its weights, or why they are not taken."""

from __future__ import annotations

import os
from pathlib import Path

from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.find import is_checkpoint
from dist_trainer.checkpoints.folder import step_of
from dist_trainer.errors import UserError
from dist_trainer.exchange import deepspeed_files, transformers_folder
from dist_trainer.exchange.weights import Weights


def open_foreign(path: Path) -> Weights | None:
    """The weights in a folder of transformers or DeepSpeed; None for one that is neither, or this program's own.

    Nothing of it is run, and nothing outside it is read. torch is imported for DeepSpeed's alone. Raises UserError for
    a model that this program's GPT cannot be, and for files that are damaged, lie elsewhere, or are not what they say.
    """
    if _is_own(path):
        return None
    try:
        if transformers_folder.has_weights(path):
            return transformers_folder.open_folder(path)
        folder = deepspeed_files.folder_of(path)
        if folder is not None:
            from dist_trainer.exchange import deepspeed_folder

            return deepspeed_folder.open_checkpoint(path, folder)
        if os.path.lexists(path / transformers_folder.CONFIG_FILE):
            return transformers_folder.open_folder(path)
    except DamageError as damage:
        raise refused(damage) from damage
    return None


def _is_own(path: Path) -> bool:
    if is_checkpoint(path) or (path / "checkpoints").is_dir():
        return True
    return path.is_dir() and any(step_of(inner) is not None for inner in path.iterdir())


def none_at(path: Path) -> UserError:
    """There is nothing that `open_foreign` takes."""
    return UserError(
        "there are no weights of another program",
        where=str(path),
        expected="a folder with config.json and model.safetensors of transformers' GPT-2, or a DeepSpeed checkpoint",
        hint="a checkpoint of this program needs no import: begin from it with --init-from" if _is_own(path) else None,
    )


def refused(damage: DamageError) -> UserError:
    is_link = "link that leads out" in damage.problem
    return UserError(
        f"the weights are not taken: {damage.file.name} {damage.problem}",
        where=str(damage.file),
        hint="where you trust it, copy the folder with what its links name: cp -rL FROM TO" if is_link else None,
    )
