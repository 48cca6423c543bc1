from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_trainer.data.pieces import NUM_KEYS, Piece, read_pieces
from dist_trainer.data.sources import source_file
from dist_trainer.errors import UserError


def pieces_of(path: Path, piece_bytes: int = 1024) -> list[Piece]:
    return list(read_pieces([source_file(path, path.name)], piece_bytes))


@settings(deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n 🙂é数"), max_size=400),
    piece_bytes=st.integers(4, 64),
)
def test_the_pieces_of_a_file_join_to_its_text(
    tmp_path_factory: pytest.TempPathFactory, text: str, piece_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "joined.txt"
    path.write_bytes(text.encode())
    lines = tmp_path_factory.getbasetemp() / "joined.jsonl"
    lines.write_text(json.dumps({"text": text}) + "\n")
    pieces = pieces_of(path, piece_bytes)
    assert "".join(piece.text for piece in pieces) == text.removeprefix("\ufeff")
    assert all(len(piece.text.encode()) <= piece_bytes for piece in pieces)
    assert "".join(piece.text for piece in pieces_of(lines, piece_bytes)) == text


def test_pieces_end_at_line_ends_where_there_are_some(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("a line of text\n" * 1000)
    pieces = pieces_of(path, 100)
    assert len(pieces) > 100
    assert all(piece.text.endswith("\n") for piece in pieces)
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    assert all(later.follows(earlier) for earlier, later in pairwise(pieces))


def test_each_json_line_is_a_document_and_blank_lines_and_empty_texts_are_none(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "one\\n"}\n\n{"text": ""}\n{"id": 7, "text": "two"}')
    pieces = pieces_of(path)
    assert [(piece.document, piece.text) for piece in pieces] == [(0, "one\n"), (1, "two")]
    assert not pieces[1].follows(pieces[0])


def test_keys_are_spread_evenly_and_are_the_same_each_time(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text('{"text": "same"}\n' * 4000)
    keys = [piece.key for piece in pieces_of(path)]
    assert keys == [piece.key for piece in pieces_of(path)]
    eighths = [sum(key * 8 // NUM_KEYS == eighth for key in keys) for eighth in range(8)]
    assert all(400 < count < 600 for count in eighths)


@pytest.mark.parametrize("position", [0, 1023, 1024, 5000])
def test_a_byte_that_is_not_utf8_is_named_with_its_offset(tmp_path: Path, position: int) -> None:
    path = tmp_path / "latin.txt"
    data = bytearray(b"word " * 2000)
    data[position] = 0xE9
    path.write_bytes(data)
    with pytest.raises(UserError, match="not UTF-8") as raised:
        pieces_of(path)
    assert raised.value.where == str(path)
    assert f"offset {position}" in str(raised.value.found)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{not json", "not JSON"),
        (b'{"text": "\xff"}', "not JSON"),
        (b'{"body": "x"}', "no text"),
        (b'{"text": 5}', "no text"),
        (b'["text"]', "no text"),
        (b'{"text": "\\ud800"}', "not valid Unicode"),
    ],
)
def test_a_bad_json_line_is_named_with_its_number(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(UserError, match=problem) as raised:
        pieces_of(path)
    assert raised.value.where == f"{path}:2"


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "marked.txt"
    path.write_bytes("\ufeffhello".encode())
    assert [piece.text for piece in pieces_of(path)] == ["hello"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"text": "x", "y": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "a number of 5000 digits"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_line_that_no_reader_can_take_is_named(tmp_path: Path, line: str, found: str) -> None:
    path = tmp_path / "deep.JSONL"
    path.write_text('{"text": "sound"}\n' + line + "\n")
    with pytest.raises(UserError, match="a line is not JSON") as raised:
        pieces_of(path)
    assert (raised.value.where, raised.value.found) == (f"{path}:2", found)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_another_encoding_is_named_where_the_file_says_it(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "other.txt"
    path.write_text("grün\n" * 100, encoding=encoding)
    with pytest.raises(UserError, match="not UTF-8") as raised:
        pieces_of(path)
    said = "ENCODING" if encoding == "latin-1" else encoding.upper()
    assert raised.value.hint == f"convert it first: iconv -f {said} -t UTF-8 other.txt"
