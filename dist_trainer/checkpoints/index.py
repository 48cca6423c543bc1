"""index.json: where the run was, what made the checkpoint, and where each element of each parameter's states lies.

It is written last, so a checkpoint without one is not whole. Its digest, of the bytes of its content, shows whether it
was changed.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.data_file import BYTES_OF
from dist_trainer.checkpoints.inside import read_inside
from dist_trainer.checkpoints.position import Position
from dist_trainer.encoding import as_utf8, printable
from dist_trainer.errors import RunError, cut
from dist_trainer.typed_json import Finite
from dist_trainer.units import MIB, counted, format_bytes

INDEX_FILE = "index.json"
WEIGHT = "weight"
VERSION = 1
_MAX_BYTES = 256 * MIB
_FILE_NAME = re.compile(r"rank-[0-9]{5}\.safetensors")
# The file is these around the bytes of its content and around their digest.
_BEFORE, _BETWEEN, _AFTER = b'{"content":', b',"sha256":"', b'"}\n'
_DIGEST_BYTES = 64

_SIZE_LIMIT = 2**60
Size = Annotated[int, Field(ge=0, lt=_SIZE_LIMIT)]
# Of a parameter or a state: it will be shown, so it has no control characters.
Name = Annotated[str, Field(pattern=r"^\P{C}+$", max_length=500)]
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
    """What made a checkpoint: both files as they were in force, each phase's data, and versions by package.

    `imported_from`: whose weights they are, of another program; then nothing but the model is known of the run.
    """

    world_size: Size
    run: dict[str, Any]
    deepspeed: dict[str, Any]
    data: dict[str, DataFacts]
    versions: dict[str, str] = field(default_factory=dict)
    imported_from: str | None = None


@dataclass(frozen=True)
class Counters:
    """The engine's: steps taken and skipped, micro steps and samples; what else the optimizer counts, by its names;
    and the loss scaler's state, empty without a dynamic loss scale.
    """

    steps: Size
    skipped_steps: Size
    micro_steps: Size
    samples: Size
    optimizer: Mapping[str, Finite]
    loss_scaler: Mapping[str, Finite]


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
    """Its pieces, in order: every element lies in one of them. `num_elements`: None where it has a value for each
    element of the parameter; Adafactor's `row_var` has one for each row.
    """

    dtype: Dtype
    pieces: Annotated[tuple[Piece, ...], FailFast()]
    num_elements: Size | None = None


@dataclass(frozen=True)
class Parameter:
    """`states`: "weight", which is the master weight in the precision that it was kept in, and the optimizer's."""

    shape: Annotated[tuple[Size, ...], Field(max_length=64), FailFast()]
    states: Mapping[Name, State]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Index:
    """`random`: rank by rank, device -> state of its random generator, in base64."""

    position: Position
    made_by: Made
    counters: Counters
    files: Annotated[tuple[File, ...], FailFast()]
    parameters: Mapping[Name, Parameter]
    random: Annotated[tuple[Mapping[str, str], ...], FailFast()]
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


def elements_of(parameter: Parameter, state: State) -> int:
    """How many elements a state of a parameter has."""
    return parameter.num_elements if state.num_elements is None else state.num_elements


def data_file_name(rank: int) -> str:
    return f"rank-{rank:05}.safetensors"


def write(folder: Path, index: Index) -> None:
    """Writes the index of the checkpoint in `folder`, whose data files have to be complete. Raises OSError, and
    RunError if it were too large to be read again.
    """
    made = index.made_by
    data = {phase: replace(facts, path=as_utf8(facts.path)) for phase, facts in made.data.items()}
    content = _adapter().dump_json(replace(index, made_by=replace(made, data=data)))
    whole = b"".join((_BEFORE, content, _BETWEEN, _digest(content), _AFTER))
    if len(whole) > _MAX_BYTES:
        raise RunError(
            "the checkpoint's index is too large to be read again",
            where=str(folder / INDEX_FILE),
            found=format_bytes(len(whole)),
            expected=f"at most {format_bytes(_MAX_BYTES)}",
            hint="train on fewer ranks",
        )
    write_durably(folder / INDEX_FILE, whole)


def read(folder: Path) -> Index:
    """Raises DamageError if there is no index, if it was changed or cut short, or if it describes what cannot be."""
    file = folder / INDEX_FILE
    content = _content(read_inside(file, folder, max_bytes=_MAX_BYTES), file)
    try:
        index = _adapter().validate_json(content, strict=True)
    except ValidationError as error:
        _check_version(_version_of(content), file)
        raise DamageError(file, f"is not a checkpoint's index{_first_wrong(error)}") from error
    _check_version(index.version, file)
    _check_position(index, file)
    _check_files(index.files, file)
    _check_pieces(index, file)
    _check_random(index.random, file)
    return index


def write_durably(file: Path, content: bytes) -> None:
    """Writes `file` so that a reader, and a disk that loses its power, has the old content or the new one.

    One process at a time. Raises OSError.
    """
    aside = file.with_name(f".{file.name}.new")
    # It may be there from a process that was killed, or a link that is not to be followed.
    aside.unlink(missing_ok=True)
    with aside.open("xb") as opened:
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


@cache
def _adapter() -> TypeAdapter[Index]:
    return TypeAdapter(Index)


def _content(data: bytes, file: Path) -> bytes:
    end = len(data) - len(_BETWEEN) - _DIGEST_BYTES - len(_AFTER)
    content = data[len(_BEFORE) : max(end, 0)]
    if data != b"".join((_BEFORE, content, _BETWEEN, data[end:][len(_BETWEEN) : -len(_AFTER)], _AFTER)):
        raise DamageError(file, "is not a checkpoint's index")
    if data[end:] != b"".join((_BETWEEN, _digest(content), _AFTER)):
        raise DamageError(file, "is not as it was written: its digest is another")
    return content


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _first_wrong(error: ValidationError) -> str:
    """The key of what is wrong, unless there is so much that to list it would fill the memory."""
    if error.error_count() > 1000:
        return ""
    key = ".".join(str(part) for part in error.errors(include_url=False, include_input=False)[0]["loc"])
    return f": {printable(cut(key))}" if key else ""


def _version_of(content: bytes) -> object:
    """What the content says that its version is; VERSION where it cannot be told."""
    try:
        values = from_json(content)
    except ValueError:
        return VERSION
    return values.get("version", VERSION) if isinstance(values, dict) else VERSION


def _check_version(version: object, file: Path) -> None:
    if version != VERSION:
        raise DamageError(file, f"has version {cut(repr(version))}, and this dist_trainer reads version {VERSION}")


def _check_position(index: Index, file: Path) -> None:
    position, counters = index.position, index.counters
    numbers = [position.step]
    numbers += [number for progress in position.phases.values() for number in (progress.steps, progress.tokens)]
    numbers += [number for place in position.places.values() for number in (place.epoch, place.tokens)]
    lengths = [place.sequence_length for place in position.places.values()]
    taken = sum(progress.steps for progress in position.phases.values())
    is_possible = min(numbers) >= 0 and min(lengths, default=1) >= 1 and max(numbers + lengths) < _SIZE_LIMIT
    if not is_possible or taken != position.step or counters.skipped_steps > counters.steps:
        raise DamageError(file, "has a position that cannot be")


def _check_files(files: Sequence[File], file: Path) -> None:
    names = [one.name for one in files]
    wrong = next((name for name in names if not _FILE_NAME.fullmatch(name)), None)
    if wrong is not None:
        raise DamageError(file, f"names a file that is none of a checkpoint: {wrong[:100]!r}")
    if not names or len(set(names)) != len(names):
        raise DamageError(file, "names one file twice" if names else "names no file")


def _check_pieces(index: Index, file: Path) -> None:
    """Every element of a parameter's states lies in one piece, and every byte of a file after its header too."""
    places: list[list[tuple[int, int]]] = [[] for _ in index.files]
    for name, parameter in index.parameters.items():
        if WEIGHT not in parameter.states:
            raise DamageError(file, f"has no weight of {name}")
        for state, kept in parameter.states.items():
            said = f"{name}'s {state}"
            end = 0
            for piece in kept.pieces:
                if piece.start != end or piece.stop <= piece.start:
                    raise DamageError(file, f"does not say where all of {said} lies, from element {end} on")
                end = piece.stop
                if piece.file >= len(index.files):
                    raise DamageError(file, f"places {said} where no file is")
                num_bytes = (piece.stop - piece.start) * BYTES_OF[kept.dtype]
                places[piece.file].append((piece.offset, piece.offset + num_bytes))
            if end != elements_of(parameter, kept):
                raise DamageError(file, f"does not say where all of {said} lies, from element {end} on")
    for one, there in zip(index.files, places, strict=True):
        end = one.header_bytes
        for begin, stop in sorted(there):
            if begin != end:
                raise DamageError(file, f"does not say what lies in {one.name}, from byte {min(begin, end)} on")
            end = stop
        if end != one.num_bytes:
            raise DamageError(file, f"places {counted(end, 'byte')} in {one.name}, which has {one.num_bytes}")


def _check_random(random: Sequence[Mapping[str, str]], file: Path) -> None:
    for rank, states in enumerate(random):
        try:
            decoded = {device: base64.b64decode(text, validate=True) for device, text in states.items()}
        except ValueError as error:
            raise DamageError(file, f"has a random state of rank {rank} that is none") from error
        if not decoded.get("cpu"):
            raise DamageError(file, f"has no random state of rank {rank}")
