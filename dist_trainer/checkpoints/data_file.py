"""A rank's file of tensors, in safetensors' form, written and read as bytes: neither torch nor a pickle is needed.

The form: eight bytes with the header's length (little endian), the header (JSON: name -> dtype, shape, begin and end
of its bytes), then the bytes of all tensors. Source: the format's description in the documentation of safetensors.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.inside import stat_inside
from dist_trainer.checkpoints.uncached_file import BLOCK_BYTES, UncachedFile
from dist_trainer.units import counted

if TYPE_CHECKING:
    from xxhash import xxh3_128

BYTES_OF = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "U8": 1, "I64": 8, "I32": 4}


@dataclass(frozen=True)
class Part:
    """Elements [start, stop) of a parameter's state, flattened, as one rank has them: a tensor of its data file.

    `dtype`: safetensors' name. `state`: "weight", or the optimizer's name of it ("exp_avg"). `num_elements`: of the
    whole state, where it does not have a value for each element of the parameter.
    """

    parameter: str
    state: str
    start: int
    stop: int
    dtype: str
    num_elements: int | None = None

    @property
    def name(self) -> str:
        """The tensor's name in the file."""
        return f"{self.parameter}/{self.state}/{self.start}"

    @property
    def num_bytes(self) -> int:
        return (self.stop - self.start) * BYTES_OF[self.dtype]


@dataclass(frozen=True)
class Layout:
    """Where the parts of a data file lie. `offsets`: of each part's first byte in the file."""

    parts: tuple[Part, ...]
    offsets: tuple[int, ...]
    header: bytes
    num_bytes: int


@dataclass(frozen=True)
class Written:
    """Checksums of a data file's header and of each part, in the layout's order."""

    header: str
    parts: tuple[str, ...]


def lay_out(parts: Sequence[Part]) -> Layout:
    """The layout of a file with these parts, in their order. Each begins at a multiple of eight bytes after the header,
    if the number of bytes of each part before it is one."""
    header = header_of((part.name, part.dtype, (part.stop - part.start,)) for part in parts)
    offsets = []
    place = len(header)
    for part in parts:
        offsets.append(place)
        place += part.num_bytes
    return Layout(tuple(parts), tuple(offsets), header, place)


def header_of(tensors: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str] | None = None) -> bytes:
    """What comes before the bytes of these tensors, each a name, a dtype and a shape, which follow in this order."""
    begin = 0
    described: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    for name, dtype, shape in tensors:
        end = begin + math.prod(shape) * BYTES_OF[dtype]
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write(path: Path, layout: Layout, contents: Iterable[memoryview]) -> Written:
    """Writes a new data file and waits until the disk has it. `contents`: the bytes of each part, in order.

    Raises OSError.
    """
    checksums = []
    with UncachedFile(path) as file:
        file.write(memoryview(layout.header))
        for part, content in zip(layout.parts, contents, strict=True):
            assert content.nbytes == part.num_bytes
            digest = _hasher()
            for block in _blocks(content):
                digest.update(block)
                file.write(block)
            checksums.append(digest.hexdigest())
        file.finish()
    header = _hasher()
    header.update(layout.header)
    return Written(header.hexdigest(), tuple(checksums))


class DataFile:
    """A data file that is open for reading. Only a regular file of just this many bytes, that lies in `folder`, is
    opened; DamageError is raised for anything else, and where it cannot be read to the end.
    """

    def __init__(self, path: Path, folder: Path, num_bytes: int) -> None:
        self.path = path
        # Before it is opened, because to open a device may do something.
        stat_inside(path, folder)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise DamageError(path, f"cannot be read ({error.strerror})") from error
        try:
            self._check_opened(num_bytes)
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def read_into(self, content: memoryview, offset: int) -> None:
        """Fills `content` with the bytes from `offset` on. Raises DamageError."""
        for block in _blocks(content):
            done = 0
            while done < block.nbytes:
                try:
                    count = os.preadv(self._descriptor, [block[done:]], offset + done)
                except OSError as error:
                    raise DamageError(self.path, f"cannot be read ({error.strerror})") from error
                if count == 0:
                    raise DamageError(self.path, "was cut short while it was read")
                done += count
            offset += block.nbytes

    def checksum(self, offset: int, num_bytes: int, buffer: memoryview) -> str:
        """The checksum of these bytes, read through `buffer`. Raises DamageError."""
        digest = _hasher()
        for place in range(offset, offset + num_bytes, buffer.nbytes):
            block = buffer[: min(buffer.nbytes, offset + num_bytes - place)]
            self.read_into(block, place)
            digest.update(block)
        return digest.hexdigest()

    def _check_opened(self, num_bytes: int) -> None:
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise DamageError(self.path, "is not a regular file")
        if found.st_size != num_bytes:
            raise DamageError(self.path, f"has {counted(found.st_size, 'byte')} and was written with {num_bytes}")


def block_buffer() -> memoryview:
    """A buffer for `DataFile.checksum`."""
    return memoryview(bytearray(BLOCK_BYTES))


def _blocks(content: memoryview) -> Iterator[memoryview]:
    flat = content.cast("B")
    for begin in range(0, flat.nbytes, BLOCK_BYTES):
        yield flat[begin : begin + BLOCK_BYTES]


def _hasher() -> xxh3_128:
    # Imported here, because `launch` reads checkpoints' indices without it.
    from xxhash import xxh3_128

    return xxh3_128()
