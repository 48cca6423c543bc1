"""Which checkpoint `--resume` means, and whether it is whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.checkpoints import card
from dist_trainer.checkpoints.card import CARD_FILE, Card, DamageError
from dist_trainer.config.progress import Progress
from dist_trainer.errors import UserError

LATEST_FILE = "latest"
_MAX_LATEST_BYTES = 64
_NAME = re.compile(r"step-(0|[1-9][0-9]{0,17})")
_START_ANEW = "start anew with another --run-dir"


@dataclass(frozen=True)
class Found:
    """A checkpoint that is whole."""

    folder: Path
    card: Card


@dataclass(frozen=True)
class Resume:
    """What `--resume` selects: a checkpoint, or None to start from the beginning; `notices` are lines for people."""

    found: Found | None = None
    notices: tuple[str, ...] = ()

    @property
    def phases(self) -> Mapping[str, Progress]:
        """How much of each phase is done."""
        return self.found.card.position.phases if self.found else {}


def name_of(step: int) -> str:
    """The folder name of the checkpoint after this step."""
    return f"step-{step}"


def write_latest(checkpoints_dir: Path, step: int) -> None:
    """Makes `latest` name the checkpoint after this step, atomically."""
    card.replace_file(checkpoints_dir / LATEST_FILE, name_of(step))


def find(resume: str, run_dir: Path | None, *, with_files: bool = True) -> Resume:
    """The checkpoint that `--resume auto|never|PATH` selects.

    `auto`: the newest in this run's folder, if there is any. PATH: a run's folder, its checkpoints folder, or one
    step-N folder. `with_files`: check every file of the checkpoint, which one rank does for all. Raises UserError if
    there is none at PATH, or if the selected one is damaged; the error names one that is whole, if any.
    """
    if resume == "never" or (resume == "auto" and run_dir is None):
        return Resume()
    try:
        if resume == "auto":
            assert run_dir is not None
            return _newest(run_dir / "checkpoints", with_files=with_files)
        path = Path(resume).resolve()
        if os.path.lexists(path / CARD_FILE) or (_NAME.fullmatch(path.name) and path.is_dir()):
            return Resume(_whole(path, with_files=with_files))
        for folder in (path / "checkpoints", path):
            newest = _newest(folder, with_files=with_files)
            if newest.found is not None:
                return newest
    except DamageError as damage:
        raise _explain(damage) from damage
    except OSError as error:
        raise UserError("a checkpoint cannot be read", where=error.filename, found=error.strerror) from error
    raise UserError(
        "no checkpoint to resume from",
        where="--resume",
        found=resume,
        expected="a run's folder with checkpoints, or one checkpoints/step-N folder",
        hint="use --resume auto for the newest of the run's folder, or --resume never",
    )


def _newest(folder: Path, *, with_files: bool) -> Resume:
    """The one that `latest` names. If the very first save was cut off there is none, and nothing is lost."""
    latest = folder / LATEST_FILE
    if not os.path.lexists(latest):
        begun = list(_saves(folder))
        if any(os.path.lexists(path / CARD_FILE) for path in begun):
            raise DamageError(latest, "is missing, which says which of the checkpoints beside it is the newest")
        return Resume(notices=tuple(f"{path} was never finished: nothing to resume from there" for path in begun))
    try:
        name = card.read_inside(latest, folder, max_bytes=_MAX_LATEST_BYTES).decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise DamageError(latest, "does not name a checkpoint") from error
    if not _NAME.fullmatch(name):
        raise DamageError(latest, f"does not name a checkpoint, but says {name!r}" if name else "is empty")
    if not (folder / name).is_dir():
        raise DamageError(latest, f"names {name}, which is not there")
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise DamageError(folder / name, "is a link that leads out of the folder of checkpoints")
    found = _whole(folder / name, with_files=with_files)
    newer = _newest_whole(folder, above=_step(folder / name)) if with_files else None
    if newer is None:
        return Resume(found)
    return Resume(found, (f"{latest} names {name}, though {newer.name} is whole too: {name} is resumed from",))


def _whole(folder: Path, *, with_files: bool = True) -> Found:
    read = card.read(folder)
    if _NAME.fullmatch(folder.name) and _step(folder) != read.position.step:
        raise DamageError(folder / CARD_FILE, f"is that of step {read.position.step}")
    if with_files:
        card.check_files(folder, read)
    return Found(folder, read)


def _saves(folder: Path) -> Iterator[Path]:
    """The step-N folders, the newest first."""
    if folder.is_dir():
        yield from sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=_step, reverse=True)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _newest_whole(folder: Path, *, above: int = -1, but: Path | None = None) -> Path | None:
    for path in _saves(folder):
        if _step(path) <= above:
            return None
        if path == but:
            continue
        try:
            return _whole(path).folder
        except DamageError:
            continue
    return None


def cannot_be_loaded(folder: Path, problem: str) -> UserError:
    """The error for a checkpoint whose files are all there but whose content cannot be loaded."""
    return _explain(DamageError(folder, problem))


def _explain(damage: DamageError) -> UserError:
    # `damage.file` is `latest`, a checkpoint's folder or a file in one: other checkpoints beside it may be whole.
    damaged = next((path for path in (damage.file, *damage.file.parents) if _NAME.fullmatch(path.name)), damage.file)
    whole = _newest_whole(damaged.parent, but=damaged)
    return UserError(
        f"the checkpoint cannot be resumed from: {damage.file.name} {damage.problem}",
        where=str(damage.file),
        hint=f"{whole.name} beside it is whole: resume from it with --resume {whole}, or {_START_ANEW}"
        if whole
        else f"no other checkpoint beside it is whole: {_START_ANEW}",
    )
