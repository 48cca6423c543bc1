"""A checkpoint's states as torch's tensors: any elements of any of them, wherever they lie in its files."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from dist_trainer.checkpoints.data_file import BYTES_OF, DataFile
from dist_trainer.checkpoints.index import Index, State
from dist_trainer.units import MIB

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
# Converted, or brought to a GPU, at a time.
_STAGED_BYTES = 64 * MIB


class Reader:
    """Reads any elements of a parameter's state, wherever they lie in the files of a checkpoint."""

    def __init__(self, folder: Path, index: Index) -> None:
        self._folder = folder
        self._index = index
        self._files: dict[int, DataFile] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def read_into(self, target: Tensor, parameter: str, state: str, start: int) -> None:
        """Fills a contiguous tensor with elements from `start` on, converted to its dtype. Raises DamageError."""
        kept = self._index.parameters[parameter].states[state]
        flat = target.detach().view(-1)
        for file, offset, begin, numel in _overlaps(kept, start, start + flat.numel()):
            self._read(flat.narrow(0, begin - start, numel), file, offset, DTYPES[kept.dtype])

    def _read(self, target: Tensor, file: int, offset: int, dtype: torch.dtype) -> None:
        opened = self._open(file)
        if target.dtype == dtype and target.device.type == "cpu":
            opened.read_into(memory_of(target), offset)
            return
        step = _STAGED_BYTES // dtype.itemsize
        staged = torch.empty(min(step, target.numel()), dtype=dtype)
        for begin in range(0, target.numel(), step):
            part = target.narrow(0, begin, min(step, target.numel() - begin))
            source = staged.narrow(0, 0, part.numel())
            opened.read_into(memory_of(source), offset + begin * dtype.itemsize)
            part.copy_(source)

    def _open(self, number: int) -> DataFile:
        if number not in self._files:
            file = self._index.files[number]
            opened = DataFile(self._folder / file.name, self._folder, file.num_bytes)
            self._files[number] = self._stack.enter_context(opened)
        return self._files[number]


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor in the host's memory."""
    return tensor.view(torch.uint8).numpy().data


def _overlaps(kept: State, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """The pieces that have elements of [start, stop): file, first byte, first element, number of elements."""
    first = bisect_right(kept.pieces, start, key=lambda piece: piece.start) - 1
    for piece in kept.pieces[first:]:
        begin, end = max(piece.start, start), min(piece.stop, stop)
        if begin >= end:
            return
        yield piece.file, piece.offset + (begin - piece.start) * BYTES_OF[kept.dtype], begin, end - begin
