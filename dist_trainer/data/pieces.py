"""The text of the sources, in pieces small enough to hold many in memory."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dist_trainer import strict_json
from dist_trainer.data.sources import SourceFile, unreadable
from dist_trainer.errors import UserError

NUM_KEYS = 2**16


@dataclass(frozen=True)
class Piece:
    """A part of one document, or the whole of a short one.

    `document` numbers the documents, `index` the pieces within one, both from 0. `key` is a hash of the piece's place,
    uniform on [0, NUM_KEYS): the same inputs give the same keys.
    """

    text: str
    document: int
    index: int
    key: int
    num_source_bytes: int

    def follows(self, other: Piece | None) -> bool:
        return other is not None and self.document == other.document and self.index == other.index + 1


def read_pieces(sources: Iterable[SourceFile], piece_bytes: int) -> Iterator[Piece]:
    """Yields every document that is not empty, in pieces of at most `piece_bytes` (at least 4) cut at line ends.

    A .jsonl file holds one document per line, any other file is one document. Raises UserError if a file cannot be
    read, is not UTF-8 (with the byte offset), or has a bad line (with its number).
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
            raise unreadable(source.path, error) from error


def _key(*place: object) -> int:
    digest = hashlib.blake2b("\0".join(str(part) for part in place).encode(errors="surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") % NUM_KEYS


def _documents(source: SourceFile, piece_bytes: int) -> Iterable[Iterator[tuple[str, int]]]:
    """For each document its parts: the text, and how many bytes of the file it accounts for."""
    return _json_lines(source, piece_bytes) if source.path.suffix.lower() == ".jsonl" else [_text(source, piece_bytes)]


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
            hint=f"convert it first: iconv -f {_encoding(data) if offset == 0 else 'ENCODING'} -t UTF-8 {path.name}",
        ) from error
    return text.removeprefix("\ufeff") if offset == 0 else text


def _encoding(data: bytes) -> str:
    """The encoding that the text's byte-order mark or first bytes suggest."""
    marks = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16"}
    marks |= {codecs.BOM_UTF16_BE: "UTF-16"}
    return next((name for mark, name in marks.items() if data.startswith(mark)), "ENCODING")


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
    """Where to cut: after the last line end, else before the last space, else between two characters."""
    cut = data.rfind(b"\n") + 1 or max(data.rfind(b" "), 0)
    if cut:
        return cut
    for num_tail in range(1, min(4, len(data))):
        byte = data[-num_tail]
        if byte >= 0xC0:
            is_cut_short = num_tail < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
            return len(data) - num_tail if is_cut_short else len(data)
    return len(data)
