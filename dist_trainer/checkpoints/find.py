"""Which checkpoint is meant, by `--resume` for one: that which is named, or the newest whole one of a run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.checkpoints import index as indices
from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.folder import LATEST_FILE, MAX_LATEST_BYTES, saves, step_of
from dist_trainer.checkpoints.index import INDEX_FILE, Index
from dist_trainer.checkpoints.inside import read_inside
from dist_trainer.checkpoints.verify import check_sizes
from dist_trainer.config.progress import Progress
from dist_trainer.errors import UserError


@dataclass(frozen=True)
class Use:
    """What a checkpoint is looked for, in the words of messages: "no checkpoint to `act`", "is `acted`".

    `where` it was named. `instead`: what to do with another one, at {folder}; `without`: if there is none. `expected`:
    what may be named.
    """

    act: str
    acted: str
    where: str
    instead: str
    without: str
    expected: str = "a run's folder with checkpoints, or one checkpoints/step-N folder"


RESUMING = Use(
    act="resume from",
    acted="resumed from",
    where="--resume",
    instead="resume from it with --resume {folder}, or start anew with another --run-dir",
    without="start anew with another --run-dir",
)


@dataclass(frozen=True)
class Found:
    """A checkpoint whose index is whole."""

    folder: Path
    index: Index


@dataclass(frozen=True)
class Resume:
    """What `--resume` selects: a checkpoint, or None to start from the beginning; `notices` are lines for people."""

    found: Found | None = None
    notices: tuple[str, ...] = ()

    @property
    def phases(self) -> Mapping[str, Progress]:
        """How much of each phase is done."""
        return self.found.index.position.phases if self.found else {}


def find(
    resume: str,
    run_dir: Path | None,
    *,
    with_files: bool = True,
    damaged: Mapping[Path, str] | None = None,
    use: Use = RESUMING,
) -> Resume:
    """The checkpoint that `--resume auto|never|PATH` selects.

    `auto`: the newest whole one in this run's folder, if there is any checkpoint. PATH: a run's folder, its checkpoints
    folder, or one step-N folder. `with_files`: look for files of another size as well; `damaged`: folders whose files
    were found not to be as they were written, and what is wrong with each. Raises UserError if there is none at PATH,
    if the one at PATH is damaged, or if none of a run's is whole; the error names one that is whole, if any.
    """
    if resume == "never" or (resume == "auto" and run_dir is None):
        return Resume()
    look = _Look(with_files, damaged or {}, use)
    try:
        if resume == "auto":
            assert run_dir is not None
            return _newest(run_dir / "checkpoints", look)
        path = Path(os.path.realpath(resume))
        if is_checkpoint(path):
            return Resume(look.at(path))
        for folder in (path / "checkpoints", path):
            newest = _newest(folder, look)
            if newest.found is not None:
                return newest
    except DamageError as damage:
        raise _explain(damage, look) from damage
    except OSError as error:
        raise UserError("a checkpoint cannot be read", where=error.filename, found=error.strerror) from error
    raise UserError(
        f"no checkpoint to {use.act}",
        where=use.where,
        found=resume,
        expected=use.expected,
        hint="use --resume auto for the newest of the run's folder, or --resume never" if use is RESUMING else None,
    )


def index_in(folder: Path) -> Index:
    """The index of the checkpoint in this folder, of its step. Raises DamageError."""
    if folder.is_symlink() and not folder.resolve().is_relative_to(folder.parent.resolve()):
        raise DamageError(folder, "is a link that leads out of the folder of checkpoints")
    index = indices.read(folder)
    if step_of(folder) not in (None, index.position.step):
        raise DamageError(folder / INDEX_FILE, f"is that of step {index.position.step}")
    return index


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is one checkpoint, whole or not, and no folder of them."""
    return os.path.lexists(path / INDEX_FILE) or (step_of(path) is not None and path.is_dir())


@dataclass(frozen=True)
class _Look:
    """How closely checkpoints are looked at."""

    with_files: bool
    damaged: Mapping[Path, str]
    use: Use = RESUMING

    def at(self, folder: Path) -> Found:
        """The checkpoint in this folder. Raises DamageError if it is not whole."""
        if folder.resolve() in self.damaged:
            raise DamageError(folder, f"is not whole: {self.damaged[folder.resolve()]}")
        index = index_in(folder)
        if self.with_files:
            check_sizes(folder, index)
        return Found(folder, index)

    def first_whole(self, folders: Iterable[Path]) -> Found | None:
        for folder in folders:
            try:
                return self.at(folder)
            except DamageError:
                continue
        return None


def _newest(checkpoints_dir: Path, look: _Look) -> Resume:
    """The one that `latest` names; if that is not whole, or `latest` names none, the newest that is whole.

    Raises DamageError if there are checkpoints and none is whole.
    """
    latest = checkpoints_dir / LATEST_FILE
    if not os.path.lexists(latest) and not _has_any(checkpoints_dir):
        return Resume()
    try:
        named = checkpoints_dir / named_by(latest)
        found = look.at(named)
    except DamageError as damage:
        whole = look.first_whole(saves(checkpoints_dir))
        if whole is None:
            raise
        return Resume(whole, (f"{damage}; {whole.folder.name}, the newest that is whole, is {look.use.acted}",))
    newer = look.first_whole(
        folder for folder in saves(checkpoints_dir) if (step_of(folder) or 0) > found.index.position.step
    )
    if newer is None:
        return Resume(found)
    notice = f"{latest} names {named.name}, though {newer.folder.name} is whole too: {named.name} is {look.use.acted}"
    return Resume(found, (notice,))


def _has_any(checkpoints_dir: Path) -> bool:
    """Whether anything there has a checkpoint's name, even a link, which is taken only if `latest` names it."""
    return checkpoints_dir.is_dir() and any(step_of(path) is not None for path in checkpoints_dir.iterdir())


def named_by(latest: Path) -> str:
    """The name in `latest`, of a folder that is there. Raises DamageError."""
    folder = latest.parent
    try:
        name = read_inside(latest, folder, max_bytes=MAX_LATEST_BYTES).decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise DamageError(latest, "does not name a checkpoint") from error
    if step_of(folder / name) is None or "/" in name:
        raise DamageError(latest, f"does not name a checkpoint, but says {name!r}" if name else "is empty")
    if not (folder / name).is_dir():
        raise DamageError(latest, f"names {name}, which is not there")
    return name


def cannot_be_loaded(folder: Path, problem: str) -> UserError:
    """The error for a checkpoint whose files are all there but whose content cannot be loaded."""
    return _explain(DamageError(folder, problem), _Look(with_files=True, damaged={}))


def _explain(damage: DamageError, look: _Look) -> UserError:
    # `damage.file` is `latest`, a checkpoint's folder or a file in one: other checkpoints beside it may be whole.
    places = (damage.file, damage.file.parent)
    damaged = next((path for path in places if step_of(path) is not None), damage.file)
    whole = look.first_whole(folder for folder in saves(damaged.parent) if folder != damaged)
    return UserError(
        f"the checkpoint cannot be {look.use.acted}: {damage.file.name} {damage.problem}",
        where=str(damage.file),
        hint=f"{whole.folder.name} beside it is whole: {look.use.instead.format(folder=whole.folder)}"
        if whole
        else f"no other checkpoint beside it is whole: {look.use.without}",
    )
