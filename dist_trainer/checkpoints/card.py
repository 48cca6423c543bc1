"""checkpoint.json, the card: where the run was, what made the checkpoint, and which files it has.

The card is written last, so a checkpoint without one is incomplete. Its digest shows whether the card was changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from dist_trainer.checkpoints.position import Position
from dist_trainer.encoding import all_as_utf8
from dist_trainer.units import MIB, counted

CARD_FILE = "checkpoint.json"
_MAX_BYTES = 64 * MIB


@dataclass(frozen=True)
class DataFacts:
    """The train tokens of a phase. `fingerprint` identifies them; `tokenizer` is a digest, None if unknown."""

    path: str
    num_tokens: int
    fingerprint: str
    tokenizer: str | None


@dataclass(frozen=True)
class Made:
    """What made a checkpoint: the run file and the DeepSpeed JSON as they were in force, and each phase's data."""

    world_size: int
    run: dict[str, Any]
    deepspeed: dict[str, Any]
    data: dict[str, DataFacts]


@dataclass(frozen=True)
class Card:
    """`files`: path within the checkpoint's folder -> size in bytes, for every file but the card."""

    position: Position
    made_by: Made
    files: Mapping[str, Annotated[int, Field(ge=0)]]


class DamageError(Exception):
    """A checkpoint is damaged: `problem` says in a few words what is wrong with `file`."""

    def __init__(self, file: Path, problem: str) -> None:
        super().__init__(f"{file} {problem}")
        self.file = file
        self.problem = problem


def write(folder: Path, position: Position, made_by: Made) -> None:
    """Writes the card of the checkpoint in `folder`, whose other files have to be complete."""
    files = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    files.pop(CARD_FILE, None)
    content = all_as_utf8(dataclasses.asdict(Card(position, made_by, files)))
    text = json.dumps({"content": content, "sha256": _digest(content)}, indent=2) + "\n"
    replace_file(folder / CARD_FILE, text)


def remove(folder: Path) -> None:
    """Removes the card, which makes `folder` an incomplete checkpoint; done before its files are written anew."""
    (folder / CARD_FILE).unlink(missing_ok=True)


def read(folder: Path) -> Card:
    """Raises DamageError if there is no card, or if it was changed or cut short."""
    file = folder / CARD_FILE
    try:
        values = from_json(read_inside(file, folder, max_bytes=_MAX_BYTES))
        content = values["content"]
        if values["sha256"] != _digest(content):
            raise DamageError(file, "is not as it was written: its digest is another")
        card = TypeAdapter(Card).validate_json(json.dumps(content), strict=True)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        problem = "is not a checkpoint's description"
        if isinstance(error, ValidationError):
            problem += f": {'.'.join(str(part) for part in error.errors()[0]['loc'])}"
        raise DamageError(file, problem) from error
    _check_position(card.position, file)
    return card


def check_files(folder: Path, card: Card) -> None:
    """Raises DamageError for the first file that is missing or has another size than the card says."""
    for name, size_bytes in card.files.items():
        file = folder / name
        found = _stat_inside(file, folder).st_size
        if found != size_bytes:
            raise DamageError(file, f"has {counted(found, 'byte')} and was written with {size_bytes}")


def read_inside(file: Path, folder: Path, *, max_bytes: int) -> bytes:
    """The content of a regular file that, links resolved, lies in `folder`. Raises DamageError for anything else."""
    if _stat_inside(file, folder).st_size > max_bytes:
        raise DamageError(file, "is too large")
    try:
        with file.open("rb") as opened:
            return opened.read(max_bytes)
    except OSError as error:
        raise DamageError(file, f"cannot be read ({error.strerror})") from error


def replace_file(file: Path, text: str) -> None:
    """Writes `file` atomically: a reader sees the old text or the new one."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(file)


def _stat_inside(file: Path, folder: Path) -> os.stat_result:
    try:
        found = file.stat()
    except FileNotFoundError as error:
        raise DamageError(file, "is missing") from error
    except (OSError, ValueError) as error:
        raise DamageError(file, f"cannot be read ({error})") from error
    if not stat.S_ISREG(found.st_mode):
        raise DamageError(file, "is not a regular file")
    if not file.resolve().is_relative_to(folder.resolve()):
        raise DamageError(file, "is a link that leads out of the checkpoint's folder")
    return found


def _check_position(position: Position, file: Path) -> None:
    numbers = [position.step]
    numbers += [number for progress in position.phases.values() for number in (progress.steps, progress.tokens)]
    numbers += [number for place in position.places.values() for number in (place.epoch, place.tokens)]
    taken = sum(progress.steps for progress in position.phases.values())
    lengths = [place.sequence_length for place in position.places.values()]
    if min(numbers) < 0 or min(lengths, default=1) < 1 or taken != position.step:
        raise DamageError(file, "has a position that cannot be")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
