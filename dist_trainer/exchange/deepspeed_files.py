"""Which files a DeepSpeed checkpoint has, by their names: without torch, and nothing but `latest` is opened."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.inside import read_inside
from dist_trainer.encoding import printable
from dist_trainer.errors import UserError, cut

_MODEL_FILE = re.compile(r"(?:zero_pp_rank_([0-9]{1,6})_)?mp_rank_([0-9]{2,5})_model_states\.pt")
_OPTIMIZER_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_([0-9]{1,6})_mp_rank_([0-9]{2,5})_optim_states\.pt")
_OTHER_FILE = re.compile(r"layer_[0-9]+[-_].*\.pt")
_LATEST, _MAX_LATEST_BYTES = "latest", 1000


def folder_of(path: Path) -> Path | None:
    """The folder with the states' files at `path`: this one, or the one that `latest` in it names; None if there is
    none. Raises DamageError for a `latest` that names what lies elsewhere.
    """
    if _has_states(path):
        return path
    if not os.path.lexists(path / _LATEST):
        return None
    named = read_inside(path / _LATEST, path, max_bytes=_MAX_LATEST_BYTES)
    name = os.fsdecode(named.strip())
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise DamageError(path / _LATEST, f"names no folder of this one: {printable(cut(name))}")
    folder = path / name
    if not folder.resolve().is_relative_to(path.resolve()):
        raise DamageError(folder, "is a link that leads out of the checkpoint's folder")
    return folder if _has_states(folder) else None


def files_in(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the model's and of the optimizer's files, in the order of the ranks."""
    names = sorted(inner.name for inner in folder.iterdir())
    other = next((name for name in names if _OTHER_FILE.fullmatch(name)), None)
    if other is not None:
        raise _divided(folder, other, "layers or experts in files of their own")
    model_files = [found for found in map(_MODEL_FILE.fullmatch, names) if found]
    optimizer_files = [found for found in map(_OPTIMIZER_FILE.fullmatch, names) if found]
    parallel = next((found[0] for found in (*model_files, *optimizer_files) if int(found[2])), None)
    if parallel is not None:
        raise _divided(folder, parallel, "tensor parallelism")
    ordered = sorted(optimizer_files, key=lambda found: int(found[1]))
    if [int(found[1]) for found in ordered] != list(range(len(ordered))):
        raise DamageError(folder, "does not have one *_optim_states.pt of each rank")
    of_models = sorted(model_files, key=lambda found: int(found[1] or 0))
    return [found[0] for found in of_models], [found[0] for found in ordered]


def _has_states(folder: Path) -> bool:
    return folder.is_dir() and any(_MODEL_FILE.fullmatch(inner.name) for inner in folder.iterdir())


def _divided(folder: Path, name: str, how: str) -> UserError:
    return UserError(
        f"the checkpoint is of a model that was divided by {how}, which is not read",
        where=str(folder),
        found=printable(cut(name)),
        expected="mp_rank_00_model_states.pt, or zero_pp_rank_N_mp_rank_00_model_states.pt",
    )
