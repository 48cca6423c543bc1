"""Whether the files of a checkpoint are as they were written: their sizes, and every byte by its checksum."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.data_file import DataFile, block_buffer
from dist_trainer.checkpoints.index import File, Index
from dist_trainer.checkpoints.inside import stat_inside
from dist_trainer.units import counted


def check_sizes(folder: Path, index: Index) -> None:
    """Raises DamageError for the first file that is missing or has another size than when it was written."""
    for file in index.files:
        path = folder / file.name
        found = stat_inside(path, folder).st_size
        if found != file.num_bytes:
            raise DamageError(path, f"has {counted(found, 'byte')} and was written with {file.num_bytes}")


def damages(folder: Path, index: Index, *, share: int = 0, num_shares: int = 1) -> Iterator[DamageError]:
    """What is wrong with the files, one error a file at most. Reads every byte.

    `share` of `num_shares`: files and pieces are divided among readers, each of which finds what is wrong with its own.
    """
    pieces = defaultdict(list)
    for number, (parameter, state, piece, num_bytes) in enumerate(index.pieces()):
        if number % num_shares == share:
            pieces[piece.file].append((parameter, state, piece, num_bytes))
    buffer = block_buffer()
    for number, file in enumerate(index.files):
        is_mine = number % num_shares == share
        if not is_mine and number not in pieces:
            continue
        try:
            with ExitStack() as stack:
                opened = stack.enter_context(DataFile(folder / file.name, folder, file.num_bytes))
                if is_mine:
                    _check_header(opened, file, buffer)
                for parameter, state, piece, num_bytes in pieces[number]:
                    if opened.checksum(piece.offset, num_bytes, buffer) != piece.checksum:
                        raise DamageError(
                            folder / file.name, f"is not as it was written: the checksum of {parameter}'s {state}"
                        )
        except DamageError as damage:
            yield damage


def _check_header(opened: DataFile, file: File, buffer: memoryview) -> None:
    if opened.checksum(0, file.header_bytes, buffer) != file.header_checksum:
        raise DamageError(opened.path, "is not as it was written: the checksum of its header")
