"""A run's folder of checkpoints: whole ones under their names, what is not whole under names that no reader takes.

A checkpoint is written into `.step-N.saving`, its index last, and gets its name by a rename. One rank does all of this.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.checkpoints import index as indices
from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.index import Index, sync_folder, write_durably
from dist_trainer.checkpoints.inside import read_inside
from dist_trainer.checkpoints.verify import check_sizes

LATEST_FILE = "latest"
MAX_LATEST_BYTES = 64
_NAME = re.compile(r"step-(0|[1-9][0-9]{0,17})")
# Not a checkpoint yet, no longer one, and one whose place a newer save of the same step is about to take.
_ASIDE = re.compile(rf"\.({_NAME.pattern})\.(saving|deleting|replaced)")


def name_of(step: int) -> str:
    """The folder name of the checkpoint after this step."""
    return f"step-{step}"


def step_of(folder: Path) -> int | None:
    """The step that a folder's name says; None if it is not the name of a checkpoint."""
    found = _NAME.fullmatch(folder.name)
    return int(found[1]) if found else None


def saves(checkpoints_dir: Path) -> list[Path]:
    """The step-N folders, the newest first; links are left out."""
    if not checkpoints_dir.is_dir():
        return []
    named = [path for path in checkpoints_dir.iterdir() if step_of(path) is not None and path.is_dir()]
    return sorted((path for path in named if not path.is_symlink()), key=lambda path: step_of(path) or 0, reverse=True)


@dataclass(frozen=True)
class Leftover:
    """What a run that was killed had begun, or one that goes on is doing, with the checkpoint called `name`.

    `what`: "saving", "replaced" or "deleting".
    """

    path: Path
    name: str
    what: str

    @property
    def becomes_checkpoint(self) -> bool:
        """Whether the next start gives it its name, because all of it is there."""
        return self.what != "deleting" and not os.path.lexists(self.path.with_name(self.name)) and is_whole(self.path)


def leftovers(checkpoints_dir: Path) -> Iterator[Leftover]:
    """Those of a save that was about to replace another with the new one first."""
    for aside in sorted(checkpoints_dir.iterdir(), reverse=True):
        found = _ASIDE.fullmatch(aside.name)
        if found is not None and not aside.is_symlink() and aside.is_dir():
            yield Leftover(aside, found[1], found[3])


def begin(checkpoints_dir: Path, step: int) -> Path:
    """Makes the empty folder into which all ranks write the checkpoint of this step. Raises OSError."""
    aside = _aside(checkpoints_dir, name_of(step), "saving")
    _remove(aside)
    aside.mkdir(parents=True)
    return aside


def publish(aside: Path, index: Index) -> Path:
    """Makes the checkpoint in `aside`, whose data files are on the disk, the one of its step and the latest.

    Another checkpoint of that step is replaced. Raises OSError.
    """
    indices.write(aside, index)
    checkpoints_dir, name = aside.parent, name_of(index.position.step)
    folder = checkpoints_dir / name
    replaced = _aside(checkpoints_dir, name, "replaced")
    if os.path.lexists(folder):
        _remove(replaced)
        folder.rename(replaced)
    aside.rename(folder)
    sync_folder(checkpoints_dir)
    write_durably(checkpoints_dir / LATEST_FILE, name.encode())
    _remove(replaced)
    return folder


def abandon(aside: Path) -> None:
    """Removes what a failed save has written, as far as that is possible."""
    with suppress(OSError):
        _remove(aside)


def clear_leftovers(checkpoints_dir: Path) -> list[str]:
    """Ends what a run that was killed had begun, and says in a line what was not finished.

    To be called by one rank, while no other run can write there. Raises OSError.
    """
    told: list[str] = []
    if not checkpoints_dir.is_dir():
        return told
    for leftover in leftovers(checkpoints_dir):
        if leftover.becomes_checkpoint:
            leftover.path.rename(checkpoints_dir / leftover.name)
            continue
        _remove(leftover.path)
        if leftover.what == "saving":
            told.append(f"the save of {leftover.name} was cut off, and is removed: {leftover.path}")
    return told


def prune(checkpoints_dir: Path, *, newest: int, every_steps: int) -> list[Path]:
    """Deletes all but the newest whole checkpoints, those of every n-th step (0: none of them), and the one that
    `latest` names, which is older than others after a run was resumed from before them.

    `newest` 0 keeps all. What is newer than the last of the newest whole ones is kept, whole or not. Returns what was
    deleted. Raises OSError.
    """
    if newest <= 0:
        return []
    deleted = []
    num_whole = 0
    for folder in saves(checkpoints_dir):
        if num_whole < newest:
            num_whole += is_whole(folder)
            continue
        is_nth = every_steps > 0 and (step_of(folder) or 0) % every_steps == 0
        if is_nth or _is_latest(folder):
            continue
        deleting = _aside(checkpoints_dir, folder.name, "deleting")
        _remove(deleting)
        folder.rename(deleting)
        _remove(deleting)
        deleted.append(folder)
    return deleted


def is_whole(folder: Path) -> bool:
    """By its index and the sizes of its files."""
    try:
        check_sizes(folder, indices.read(folder))
    except DamageError:
        return False
    return True


def _is_latest(folder: Path) -> bool:
    latest = folder.parent / LATEST_FILE
    try:
        return read_inside(latest, folder.parent, max_bytes=MAX_LATEST_BYTES).strip() == folder.name.encode()
    except DamageError:
        return False


def _aside(checkpoints_dir: Path, name: str, what: str) -> Path:
    return checkpoints_dir / f".{name}.{what}"


def _remove(path: Path) -> None:
    """A folder with all that is in it; of a link, the link alone."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
