"""How each checkpoint of a run stands: whole or damaged, named by `latest`, taken by `--resume auto`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.checkpoints.changed import refuse_imported
from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.find import Found, Resume, find, index_in, is_checkpoint, named_by
from dist_trainer.checkpoints.folder import LATEST_FILE, Leftover, leftovers, step_of
from dist_trainer.checkpoints.index import INDEX_FILE, Index
from dist_trainer.checkpoints.verify import wrong_sizes
from dist_trainer.errors import UserError


@dataclass(frozen=True)
class Standing:
    """`index`: None where it cannot be read. `made_s`: when its index was written, in seconds since 1970; None without
    one. `damages`: by structure and sizes; no checksum is looked at.
    """

    folder: Path
    index: Index | None
    made_s: float | None
    damages: tuple[DamageError, ...]


@dataclass(frozen=True)
class Listing:
    """A folder of checkpoints, the newest first. `latest`: the name that the file says. `resumed`: the checkpoint that
    `--resume auto` takes, why it is refused, or None where it starts from the beginning; `notices`: what it would say.
    """

    checkpoints_dir: Path
    standings: tuple[Standing, ...]
    leftovers: tuple[Leftover, ...]
    latest: str | DamageError
    resumed: Path | UserError | None
    notices: tuple[str, ...]


def standing_of(folder: Path) -> Standing:
    """Never raises DamageError: what is wrong is in the result."""
    try:
        made_s = (folder / INDEX_FILE).stat().st_mtime
    except OSError:
        made_s = None
    try:
        index = index_in(folder)
    except DamageError as damage:
        return Standing(folder, None, made_s, (damage,))
    return Standing(folder, index, made_s, tuple(wrong_sizes(folder, index)))


def list_checkpoints(path: Path) -> Listing:
    """Of a run's folder, or of its folder of checkpoints. Raises UserError if there is nothing of a checkpoint."""
    if is_checkpoint(path):
        raise UserError(
            "this is one checkpoint, and no folder of them",
            where=str(path),
            hint=f"look into it with: dist_trainer checkpoint inspect {path}",
        )
    checkpoints_dir = checkpoints_dir_at(path)
    folders, left = list(_folders(checkpoints_dir)), tuple(leftovers(checkpoints_dir))
    latest = checkpoints_dir / LATEST_FILE
    if not folders and not left and not os.path.lexists(latest):
        raise no_checkpoint_at(path)
    named: str | DamageError
    resumed: Path | UserError | None
    try:
        named = named_by(latest)
    except DamageError as damage:
        named = damage
    notices: tuple[str, ...] = ()
    try:
        taken = _taken(checkpoints_dir)
        if taken.found is not None:
            refuse_imported(taken.found)
        resumed, notices = taken.found.folder if taken.found else None, taken.notices
    except UserError as error:
        resumed = error
    return Listing(checkpoints_dir, tuple(map(standing_of, folders)), left, named, resumed, notices)


def folders_at(path: Path) -> list[Path]:
    """The checkpoint at `path`, or all that are in the run's folder or folder of checkpoints there, the newest first.

    Raises UserError if there is none.
    """
    folders = [path] if is_checkpoint(path) else list(_folders(checkpoints_dir_at(path)))
    if not folders:
        raise no_checkpoint_at(path)
    return folders


def one_at(path: Path) -> Path:
    """The checkpoint at `path`, or the one that `--resume` would take of those there.

    Raises UserError if there is none, or if none of several is whole.
    """
    if is_checkpoint(path):
        return path
    taken = _taken(checkpoints_dir_at(path)).found
    if taken is None:
        raise no_checkpoint_at(path)
    return taken.folder


def whole_at(path: Path) -> Found:
    """The same. Raises UserError also where its index cannot be read, or a file is missing or has another size."""
    standing = standing_of(one_at(path))
    if standing.index is None or standing.damages:
        raise damaged(standing.damages[0])
    return Found(standing.folder, standing.index)


def damaged(damage: DamageError) -> UserError:
    return UserError(
        f"the checkpoint is damaged: {damage.file.name} {damage.problem}",
        where=str(damage.file),
        hint="see what else is wrong, or which are whole, with: dist_trainer checkpoint verify, or list",
    )


def checkpoints_dir_at(path: Path) -> Path:
    """Raises UserError if `path` is no folder."""
    if not path.is_dir():
        raise no_checkpoint_at(path)
    inner = path / "checkpoints"
    return inner if inner.is_dir() else path


def no_checkpoint_at(path: Path) -> UserError:
    return UserError(
        "there is no checkpoint",
        where=str(path),
        expected="a run's folder with checkpoints, its checkpoints folder, or one checkpoints/step-N folder",
    )


def _taken(checkpoints_dir: Path) -> Resume:
    """As `--resume auto` does. Raises UserError if there are checkpoints and none is whole."""
    if checkpoints_dir.name == "checkpoints":
        return find("auto", checkpoints_dir.parent)
    # A folder of checkpoints that no run has under this name: only as --resume PATH.
    return find(str(checkpoints_dir), None) if any(_folders(checkpoints_dir)) else Resume()


def _folders(checkpoints_dir: Path) -> Iterator[Path]:
    """All that have a checkpoint's name, links too, because `latest` may name one."""
    named = [path for path in checkpoints_dir.iterdir() if step_of(path) is not None]
    yield from sorted(named, key=lambda path: step_of(path) or 0, reverse=True)
