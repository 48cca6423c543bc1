"""A safetensors file of somebody else, read as bytes: what its header says is checked before anything is read by it.

The form is that of `checkpoints/data_file.py`. As the format demands, tensors leave no byte out, and share none.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from dist_trainer import strict_json
from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.data_file import BYTES_OF, DataFile, block_buffer
from dist_trainer.checkpoints.inside import stat_inside
from dist_trainer.encoding import printable
from dist_trainer.errors import cut
from dist_trainer.units import MIB

if TYPE_CHECKING:
    from torch import Tensor

_LENGTH = struct.Struct("<Q")
# Twice that of a GPT-2 of a thousand layers.
_MAX_HEADER_BYTES = 4 * MIB
_MAX_DIMENSIONS = 8
# Some files have masks too, which are not read.
_BYTES_OF = {**BYTES_OF, "BOOL": 1}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. `dtype`: safetensors' name; `offset`: of its first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class SafetensorsFile:
    """A file whose header is sound. `digest`: of the header and the file's size, not of the tensors."""

    path: Path
    num_bytes: int
    tensors: Mapping[str, Stored]
    digest: str

    def read(self, name: str) -> Tensor:
        """Raises DamageError for a file that can be read no longer."""
        import torch

        from dist_trainer.exchange.reading import DTYPES, memory_of

        stored = self.tensors[name]
        tensor = torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
        with self._opened() as opened:
            opened.read_into(memory_of(tensor), stored.offset)
        return tensor

    def checksum(self, name: str) -> str:
        """Of the bytes of a tensor. Raises DamageError for a file that can be read no longer."""
        stored = self.tensors[name]
        with self._opened() as opened:
            return opened.checksum(stored.offset, stored.num_bytes, block_buffer())

    def _opened(self) -> DataFile:
        return DataFile(self.path, self.path.parent, self.num_bytes)


def open_safetensors(path: Path) -> SafetensorsFile:
    """Raises DamageError for anything but a whole safetensors file that lies, links resolved, in its own folder."""
    num_bytes = stat_inside(path, path.parent).st_size
    if num_bytes < _LENGTH.size:
        raise DamageError(path, f"is too short for a safetensors file: {num_bytes} bytes")
    with DataFile(path, path.parent, num_bytes) as opened:
        length = bytearray(_LENGTH.size)
        opened.read_into(memoryview(length), 0)
        (header_bytes,) = _LENGTH.unpack(length)
        if header_bytes > min(_MAX_HEADER_BYTES, num_bytes - _LENGTH.size):
            raise DamageError(path, f"claims a header of {header_bytes} bytes, and has {num_bytes} in all")
        header = bytearray(header_bytes)
        opened.read_into(memoryview(header), _LENGTH.size)
    digest = hashlib.sha256(header + _LENGTH.pack(num_bytes)).hexdigest()
    tensors = _tensors(path, bytes(header), first_byte=_LENGTH.size + header_bytes)
    _check_places(path, tensors, first_byte=_LENGTH.size + header_bytes, num_bytes=num_bytes)
    return SafetensorsFile(path, num_bytes, tensors, digest)


def _tensors(path: Path, header: bytes, *, first_byte: int) -> dict[str, Stored]:
    try:
        described = strict_json.loads(header, object_pairs_hook=_once)
    except ValueError as error:
        raise DamageError(path, f"has a header that is no JSON: {printable(cut(str(error)))}") from error
    if not isinstance(described, dict):
        raise DamageError(path, "has a header that describes no tensors")
    described.pop("__metadata__", None)
    return {name: _stored(path, name, said, first_byte) for name, said in described.items()}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name comes twice")
    return values


def _stored(path: Path, name: str, said: Any, first_byte: int) -> Stored:
    described = said if isinstance(said, dict) else {}
    dtype, shape, place = (described.get(key) for key in ("dtype", "shape", "data_offsets"))
    if isinstance(dtype, str) and dtype in _BYTES_OF and _are_sizes(shape) and _are_sizes(place):
        num_bytes = math.prod(shape) * _BYTES_OF[dtype] if len(shape) <= _MAX_DIMENSIONS else -1
        if len(place) == 2 and num_bytes == place[1] - place[0]:
            return Stored(dtype, tuple(shape), first_byte + place[0], num_bytes)
    raise DamageError(path, f"does not describe the tensor {printable(cut(name))} as one that can be")


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 2**60 for one in value)


def _check_places(path: Path, tensors: Mapping[str, Stored], *, first_byte: int, num_bytes: int) -> None:
    end = first_byte
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if stored.offset != end:
            raise DamageError(path, f"does not say what lies before {printable(cut(name))}, from byte {end} on")
        end += stored.num_bytes
    if end != num_bytes:
        raise DamageError(path, f"places {end} bytes, and has {num_bytes}")
