"""Which files to read, and which of the inputs are left out."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.errors import UserError

SUFFIXES = (".jsonl", ".md", ".py", ".txt")

_PACKED = frozenset({".bz2", ".gz", ".lz4", ".tar", ".tgz", ".xz", ".zip", ".zst"})
_NUM_ENDINGS = 5
# Why entries were left out, in the notices for people.
_HIDDEN = "left out, for they are hidden"
_OTHER = f"left out, for they end with none of {', '.join(SUFFIXES)}"
_NO_FILE = "left out, for they are pipes, sockets or devices"
_LEADS_NOWHERE = "left out, for they are links that lead nowhere"
_LINKED = "read through links to folders"
_AGAIN = "read once, for they are there under another name"
_EMPTY = "without text, for they are empty"


@dataclass(frozen=True)
class SourceFile:
    """`name` identifies the file among the inputs, whatever folder they are in; the held-out part depends on it."""

    path: Path
    name: str
    num_bytes: int


@dataclass(frozen=True)
class Found:
    """The files to read, each once, and notices for people about what was left out."""

    sources: tuple[SourceFile, ...]
    notices: tuple[str, ...]


def source_file(path: Path, name: str) -> SourceFile:
    return SourceFile(path, name, _status(path).st_size)


def find_sources(inputs: Sequence[Path]) -> Found:
    """Files as given; folders are walked in sorted order, following links, without hidden entries.

    Raises UserError if an input is missing or neither file nor folder, a folder cannot be read, or no file is found.
    """
    search = _Search()
    for path in inputs:
        search.look(path)
    if not search.sources:
        raise UserError(
            "no inputs were found",
            where=", ".join(str(path) for path in inputs) or None,
            found="; ".join(search.notices()) or None,
            expected=f"files that end with one of {', '.join(SUFFIXES)}, or folders that hold some",
        )
    return Found(tuple(search.sources), tuple(search.notices()))


class _Search:
    """Goes through the inputs. Files and folders are told apart by inode, so that each is read once under any name."""

    def __init__(self) -> None:
        self.sources: list[SourceFile] = []
        self._first_names: dict[tuple[int, int], Path] = {}
        self._examples: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._endings: Counter[str] = Counter()

    def look(self, path: Path) -> None:
        status = _status(path)
        if stat.S_ISDIR(status.st_mode):
            self._walk(path)
        elif not stat.S_ISREG(status.st_mode):
            raise UserError(
                "an input is no file, and can be read no second time",
                where=str(path),
                expected="a folder, or a file: write what comes from a pipe into one",
            )
        elif not _has_known_ending(path.name):
            raise UserError(
                "an input is of a kind that cannot be read",
                where=str(path),
                found=path.suffix,
                expected=f"a folder, or a file that ends with one of {', '.join(SUFFIXES)}",
                hint="unpack it first" if path.suffix.lower() in _PACKED else None,
            )
        else:
            self._add(path, path.name, status)

    def notices(self) -> list[str]:
        told = [
            f"{reason}: {self._counts[reason]} (such as {example})"
            for reason, example in self._examples.items()
            if reason != _OTHER
        ]
        if self._endings:
            endings = [
                f"{count} {ending or 'without one'}" for ending, count in self._endings.most_common(_NUM_ENDINGS)
            ]
            more = ["others"] if len(self._endings) > _NUM_ENDINGS else []
            packed = "; unpack them first" if _PACKED.intersection(self._endings) else ""
            told.append(f"{_OTHER}: {', '.join(endings + more)} (such as {self._examples[_OTHER]}){packed}")
        return told

    def _walk(self, top: Path) -> None:
        folders = [top]
        while folders:
            folder = folders.pop()
            if not self._is_new(folder, _status(folder)):
                continue
            if folder != top and folder.is_symlink():
                self._tell(_LINKED, f"{folder} to {folder.resolve()}")
            inner = []
            for entry in _entries(folder):
                path = folder / entry.name
                if entry.name.startswith("."):
                    self._tell(_HIDDEN, path)
                    continue
                try:
                    status = entry.stat()
                except OSError as error:
                    if not entry.is_symlink() or _has_known_ending(entry.name):
                        raise unreadable(path, error) from error
                    self._tell(_LEADS_NOWHERE, path)
                    continue
                if stat.S_ISDIR(status.st_mode):
                    inner.append(path)
                elif not _has_known_ending(entry.name):
                    self._endings[path.suffix.lower()] += 1
                    self._tell(_OTHER, path)
                elif not stat.S_ISREG(status.st_mode):
                    self._tell(_NO_FILE, path)
                else:
                    self._add(path, f"{top.name}/{path.relative_to(top).as_posix()}", status)
            folders += reversed(inner)

    def _add(self, path: Path, name: str, status: os.stat_result) -> None:
        if self._is_new(path, status):
            self.sources.append(SourceFile(path, name, status.st_size))
            if not status.st_size:
                self._tell(_EMPTY, path)

    def _is_new(self, path: Path, status: os.stat_result) -> bool:
        inode = (status.st_dev, status.st_ino)
        if inode in self._first_names:
            self._tell(_AGAIN, f"{path}, which is {self._first_names[inode]}")
            return False
        self._first_names[inode] = path
        return True

    def _tell(self, reason: str, example: object) -> None:
        self._counts[reason] += 1
        self._examples.setdefault(reason, str(example))


def _has_known_ending(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise unreadable(path, error) from error


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(folder, error) from error


def unreadable(path: Path, error: OSError) -> UserError:
    return UserError("an input cannot be read", where=str(path), found=error.strerror)
