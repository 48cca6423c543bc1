"""Whether the files of a checkpoint are as they were written: their sizes, and every byte by its checksum."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from itertools import groupby
from pathlib import Path

from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.data_file import DataFile, block_buffer
from dist_trainer.checkpoints.index import Index
from dist_trainer.checkpoints.inside import stat_inside
from dist_trainer.units import counted


def check_sizes(folder: Path, index: Index) -> None:
    """Raises DamageError for the first file that is missing or has another size than when it was written."""
    for damage in wrong_sizes(folder, index):
        raise damage


def wrong_sizes(folder: Path, index: Index) -> Iterator[DamageError]:
    """One error for each file that is missing or has another size than when it was written."""
    for file in index.files:
        path = folder / file.name
        try:
            found = stat_inside(path, folder).st_size
        except DamageError as damage:
            yield damage
            continue
        if found != file.num_bytes:
            yield DamageError(path, f"has {counted(found, 'byte')} and was written with {file.num_bytes}")


def damages(folder: Path, index: Index, *, share: int = 0, num_shares: int = 1) -> Iterator[DamageError]:
    """What is wrong with the files, one error a file at most; otherwise as `every_damage`."""
    for _, of_file in groupby(every_damage(folder, index, share=share, num_shares=num_shares), lambda one: one.file):
        yield next(of_file)


def every_damage(
    folder: Path,
    index: Index,
    *,
    share: int = 0,
    num_shares: int = 1,
    states: Collection[str] | None = None,
    on_read: Callable[[int], None] = lambda num_bytes: None,
) -> Iterator[DamageError]:
    """What is wrong with the files: one error for a file that cannot be opened, for a header, and for each piece.
    Reads every byte, or those of these states alone.

    `share` of `num_shares`: files and pieces are divided among readers, each of which finds what is wrong with its own.
    `on_read` is told how many more bytes were read.
    """
    pieces = defaultdict(list)
    for number, (parameter, state, piece, num_bytes) in enumerate(index.pieces()):
        if number % num_shares == share and (states is None or state in states):
            pieces[piece.file].append((parameter, state, piece, num_bytes))
    buffer = block_buffer()
    for number, file in enumerate(index.files):
        is_mine = number % num_shares == share
        if not is_mine and number not in pieces:
            continue
        try:
            opened = DataFile(folder / file.name, folder, file.num_bytes)
        except DamageError as damage:
            yield damage
            continue
        with opened:
            parts = [("its header", 0, file.header_bytes, file.header_checksum)] if is_mine else []
            parts += [
                (f"{parameter}'s {state}", piece.offset, num_bytes, piece.checksum)
                for parameter, state, piece, num_bytes in pieces[number]
            ]
            for what, offset, num_bytes, checksum in parts:
                try:
                    if opened.checksum(offset, num_bytes, buffer) != checksum:
                        yield DamageError(opened.path, f"is not as it was written: the checksum of {what}")
                except DamageError as damage:
                    yield DamageError(opened.path, f"{damage.problem}: {what}")
                on_read(num_bytes)
