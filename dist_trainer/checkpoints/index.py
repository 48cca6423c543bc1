"""index.json: where the run was, what made the checkpoint, and where each element of each parameter's states lies.

It is written last, so a checkpoint without one is not whole. Its digest shows whether it was changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.data_file import BYTES_OF
from dist_trainer.checkpoints.position import Position
from dist_trainer.encoding import all_as_utf8
from dist_trainer.units import MIB

INDEX_FILE = "index.json"
WEIGHT = "weight"
VERSION = 1
_MAX_BYTES = 256 * MIB
_FILE_NAME = re.compile(r"rank-[0-9]{5}\.safetensors")

Size = Annotated[int, Field(ge=0, lt=2**60)]
Dtype = Literal["F32", "BF16", "F16", "F64"]


@dataclass(frozen=True)
class DataFacts:
    """The train tokens of a phase. `fingerprint` identifies them; `tokenizer` is a digest, None if unknown."""

    path: str
    num_tokens: int
    fingerprint: str
    tokenizer: str | None


@dataclass(frozen=True)
class Made:
    """What made a checkpoint: the run file and the DeepSpeed JSON as they were in force, each phase's data, versions."""

    world_size: int
    run: dict[str, Any]
    deepspeed: dict[str, Any]
    data: dict[str, DataFacts]
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Counters:
    """The engine's: steps taken and skipped, micro steps and samples; what else the optimizer counts, by its names;
    and the loss scaler's state, empty without a dynamic loss scale.
    """

    steps: Size
    skipped_steps: Size
    micro_steps: Size
    samples: Size
    optimizer: Mapping[str, float]
    loss_scaler: Mapping[str, float]


@dataclass(frozen=True)
class File:
    """A rank's data file. `header_checksum`: of everything before its first tensor."""

    name: str
    num_bytes: Size
    header_bytes: Size
    header_checksum: str


@dataclass(frozen=True)
class Piece:
    """Elements [start, stop) of a flattened state lie in the file of this number from `offset` on."""

    file: Size
    start: Size
    stop: Size
    offset: Size
    checksum: str


@dataclass(frozen=True)
class State:
    """Its pieces, in order: every element of the parameter lies in one of them."""

    dtype: Dtype
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Parameter:
    """`states`: "weight", which is the master weight in the precision that it was kept in, and the optimizer's."""

    shape: tuple[Size, ...]
    states: Mapping[str, State]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Index:
    """`random`: rank by rank, device -> state of its random generator, in base64."""

    position: Position
    made_by: Made
    counters: Counters
    files: tuple[File, ...]
    parameters: Mapping[str, Parameter]
    random: tuple[Mapping[str, str], ...]
    version: int = VERSION

    @cached_property
    def num_bytes(self) -> int:
        """Of all data files."""
        return sum(file.num_bytes for file in self.files)

    @property
    def states(self) -> list[str]:
        """The names of the optimizer's states, without the weight."""
        return sorted({name for one in self.parameters.values() for name in one.states} - {WEIGHT})

    def pieces(self) -> Iterator[tuple[str, str, Piece, int]]:
        """Each piece, with its parameter, its state, and its number of bytes."""
        for parameter, described in self.parameters.items():
            for state, kept in described.states.items():
                for piece in kept.pieces:
                    yield parameter, state, piece, (piece.stop - piece.start) * BYTES_OF[kept.dtype]


def data_file_name(rank: int) -> str:
    return f"rank-{rank:05}.safetensors"


def write(folder: Path, index: Index) -> None:
    """Writes the index of the checkpoint in `folder`, whose data files have to be complete. Raises OSError."""
    content = all_as_utf8(dataclasses.asdict(index))
    text = json.dumps({"content": content, "sha256": _digest(content)}, separators=(",", ":")) + "\n"
    write_durably(folder / INDEX_FILE, text.encode())


def read(folder: Path) -> Index:
    """Raises DamageError if there is no index, if it was changed or cut short, or if it describes what cannot be."""
    file = folder / INDEX_FILE
    try:
        values = from_json(read_inside(file, folder, max_bytes=_MAX_BYTES))
        content = values["content"]
        if values["sha256"] != _digest(content):
            raise DamageError(file, "is not as it was written: its digest is another")
        if content.get("version") != VERSION:
            raise DamageError(
                file, f"has version {content.get('version')!r}, and this dist_trainer reads version {VERSION}"
            )
        index = _ADAPTER.validate_json(json.dumps(content), strict=True)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        problem = "is not a checkpoint's index"
        if isinstance(error, ValidationError):
            problem += f": {'.'.join(str(part) for part in error.errors()[0]['loc'])}"
        raise DamageError(file, problem) from error
    _check_position(index.position, file)
    _check_files(index.files, file)
    _check_pieces(index, file)
    return index


def read_inside(file: Path, folder: Path, *, max_bytes: int) -> bytes:
    """The content of a regular file that, links resolved, lies in `folder`. Raises DamageError for anything else."""
    if stat_inside(file, folder).st_size > max_bytes:
        raise DamageError(file, "is too large")
    try:
        with file.open("rb") as opened:
            return opened.read(max_bytes)
    except OSError as error:
        raise DamageError(file, f"cannot be read ({error.strerror})") from error


def stat_inside(file: Path, folder: Path) -> os.stat_result:
    """Of a regular file that, links resolved, lies in `folder`. Raises DamageError for anything else."""
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


def write_durably(file: Path, content: bytes) -> None:
    """Writes `file` so that a reader, and a disk that loses its power, has the old content or the new one."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    with aside.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    aside.replace(file)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Waits until the disk has the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_ADAPTER = TypeAdapter(Index)


def _check_position(position: Position, file: Path) -> None:
    numbers = [position.step]
    numbers += [number for progress in position.phases.values() for number in (progress.steps, progress.tokens)]
    numbers += [number for place in position.places.values() for number in (place.epoch, place.tokens)]
    taken = sum(progress.steps for progress in position.phases.values())
    lengths = [place.sequence_length for place in position.places.values()]
    if min(numbers) < 0 or min(lengths, default=1) < 1 or taken != position.step:
        raise DamageError(file, "has a position that cannot be")


def _check_files(files: Sequence[File], file: Path) -> None:
    names = [one.name for one in files]
    wrong = next((name for name in names if not _FILE_NAME.fullmatch(name)), None)
    if wrong is not None:
        raise DamageError(file, f"names a file that is none of a checkpoint: {wrong[:100]!r}")
    if not names or len(set(names)) != len(names):
        raise DamageError(file, "names one file twice" if names else "names no file")


def _check_pieces(index: Index, file: Path) -> None:
    for name, parameter in index.parameters.items():
        if WEIGHT not in parameter.states:
            raise DamageError(file, f"has no weight of {name}")
        for state, kept in parameter.states.items():
            end = 0
            for piece in kept.pieces:
                if piece.start != end or piece.stop <= piece.start:
                    raise DamageError(file, f"does not say where all of {name}'s {state} lies, from element {end} on")
                end = piece.stop
                last_byte = piece.offset + (piece.stop - piece.start) * BYTES_OF[kept.dtype]
                if piece.file >= len(index.files) or last_byte > index.files[piece.file].num_bytes:
                    raise DamageError(file, f"places {name}'s {state} where no file is")
            if end != parameter.num_elements:
                raise DamageError(file, f"does not say where all of {name}'s {state} lies, from element {end} on")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
