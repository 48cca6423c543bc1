"""Which files there are to read, and their text in pieces small enough to hold many at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_trainer import strict_json
from dist_trainer.errors import UserError

SUFFIXES = (".jsonl", ".md", ".py", ".txt")
NUM_KEYS = 2**16


@dataclass(frozen=True)
class SourceFile:
    """`name` tells it from the other inputs whatever folder they are in: it decides what is held out."""

    path: Path
    name: str
    num_bytes: int


@dataclass(frozen=True)
class Piece:
    """A stretch of one document: the whole of it, when it's short.

    `document` and `index` number the documents, and the pieces in one, from 0. `key` is drawn evenly from
    [0, NUM_KEYS) by a hash of the piece's place: the same inputs give the same keys.
    """

    text: str
    document: int
    index: int
    key: int
    num_source_bytes: int

    def follows(self, other: Piece | None) -> bool:
        return other is not None and self.document == other.document and self.index == other.index + 1


def source_file(path: Path, name: str) -> SourceFile:
    try:
        return SourceFile(path, name, path.stat().st_size)
    except OSError as error:
        raise UserError("an input cannot be read", where=str(path), found=error.strerror) from error


def find_sources(inputs: Sequence[Path]) -> list[SourceFile]:
    """The files to read, in order: files as given, folders walked in sorted order without hidden entries.

    Raises UserError when an input is missing or of another kind, or when there is no file at all.
    """
    sources: list[SourceFile] = []
    for path in inputs:
        if path.is_dir():
            sources += [source_file(file, f"{path.name}/{file.relative_to(path).as_posix()}") for file in _walk(path)]
        elif path.exists() and path.suffix not in SUFFIXES:
            raise UserError(
                "an input is of a kind that cannot be read",
                where=str(path),
                found=path.suffix,
                expected=f"a folder, or a file that ends with one of {', '.join(SUFFIXES)}",
            )
        else:
            sources.append(source_file(path, path.name))
    if not sources:
        raise UserError(
            "no inputs were found",
            where=", ".join(str(path) for path in inputs) or None,
            expected=f"files that end with one of {', '.join(SUFFIXES)}, or folders that hold some",
        )
    return sources


def read_pieces(sources: Iterable[SourceFile], piece_bytes: int) -> Iterator[Piece]:
    """Yields every document that isn't empty, in pieces of at most `piece_bytes` (at least 4) cut at line ends.

    A .jsonl file holds one document a line, any other file is one document. Raises UserError where a file cannot
    be read, isn't UTF-8 (names the byte offset), or has a bad line (names the line).
    """
    document = 0
    for ordinal, source in enumerate(sources):
        try:
            for number, stretches in enumerate(_documents(source, piece_bytes)):
                is_empty = True
                for index, (text, num_source_bytes) in enumerate(stretches):
                    if text:
                        is_empty = False
                        yield Piece(text, document, index, _key(ordinal, source.name, number, index), num_source_bytes)
                document += not is_empty
        except OSError as error:
            raise UserError("an input cannot be read", where=str(source.path), found=error.strerror) from error


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.endswith(SUFFIXES):
                yield Path(root, name)


def _key(*place: object) -> int:
    digest = hashlib.blake2b("\0".join(str(part) for part in place).encode(errors="surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") % NUM_KEYS


def _documents(source: SourceFile, piece_bytes: int) -> Iterable[Iterator[tuple[str, int]]]:
    """For each document its stretches: text, and the bytes of the file which it accounts for."""
    return _json_lines(source, piece_bytes) if source.path.suffix == ".jsonl" else [_text(source, piece_bytes)]


def _text(source: SourceFile, piece_bytes: int) -> Iterator[tuple[str, int]]:
    with source.path.open("rb") as stream:
        rest, offset = b"", 0
        while block := stream.read(piece_bytes - len(rest)):
            data = rest + block
            cut = _cut(data) if len(data) == piece_bytes else len(data)
            yield _decode(data[:cut], source.path, offset), cut
            rest, offset = data[cut:], offset + cut
        if rest:
            yield _decode(rest, source.path, offset), len(rest)


def _decode(data: bytes, path: Path, offset: int) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            "an input is not UTF-8 text",
            where=str(path),
            found=f"the byte 0x{data[error.start]:02x} at offset {offset + error.start}",
            expected="UTF-8",
            hint=f"convert it first: iconv -f ENCODING -t UTF-8 {path.name}",
        ) from error
    return text.removeprefix("\ufeff") if offset == 0 else text


def _json_lines(source: SourceFile, piece_bytes: int) -> Iterator[Iterator[tuple[str, int]]]:
    with source.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _stretches(_text_field(line, f"{source.path}:{number}"), len(line), piece_bytes)


def _text_field(line: bytes, where: str) -> bytes:
    try:
        value = strict_json.loads(line, max_depth=None)
    except ValueError as error:
        raise UserError("a line is not JSON", where=where, found=str(error)) from error
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise UserError(
            "a line has no text",
            where=where,
            key="text",
            found=sorted(value) if isinstance(value, dict) and "text" not in value else type(value).__name__,
            expected='an object whose "text" is a string',
        )
    try:
        return str(value["text"]).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            "a line's text is not valid Unicode",
            where=where,
            key="text",
            found=f"a lone surrogate at character {error.start}",
        ) from error


def _stretches(data: bytes, num_line_bytes: int, piece_bytes: int) -> Iterator[tuple[str, int]]:
    start = 0
    while start < len(data):
        window = data[start : start + piece_bytes]
        cut = _cut(window) if start + piece_bytes < len(data) else len(window)
        yield window[:cut].decode(), 0 if start else num_line_bytes
        start += cut


def _cut(data: bytes) -> int:
    """Where to end a piece: after the last line end, else before the last space, else between two characters."""
    cut = data.rfind(b"\n") + 1 or max(data.rfind(b" "), 0)
    if cut:
        return cut
    for num_tail in range(1, min(4, len(data))):
        byte = data[-num_tail]
        if byte >= 0xC0:
            is_cut_short = num_tail < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
            return len(data) - num_tail if is_cut_short else len(data)
    return len(data)
