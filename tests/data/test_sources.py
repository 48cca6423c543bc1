from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_trainer.data.sources import NUM_KEYS, Piece, find_sources, read_pieces, source_file
from dist_trainer.errors import UserError


def pieces_of(path: Path, piece_bytes: int = 1024) -> list[Piece]:
    return list(read_pieces([source_file(path, path.name)], piece_bytes))


def test_a_folder_is_walked_in_sorted_order_for_the_known_suffixes(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.py", "sub/d.jsonl", "e.rst", ".hidden.txt", ".git/f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [source.path.relative_to(tmp_path).as_posix() for source in find_sources([tmp_path])]
    assert names == ["a.md", "b.txt", "sub/c.py", "sub/d.jsonl"]


def test_names_do_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    for place in ("one/text", "two/text"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.txt").write_text("x")
    first, second = (find_sources([tmp_path / place / "text"]) for place in ("one", "two"))
    assert [source.name for source in first] == [source.name for source in second] == ["text/a.txt"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [("missing.txt", "cannot be read"), ("image.png", "of a kind"), ("empty", "no inputs were found")],
)
def test_inputs_that_cannot_be_used_are_named(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "image.png").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=problem) as raised:
        find_sources([tmp_path / name])
    assert raised.value.where == str(tmp_path / name)


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
    "line",
    ["[" * 200_000, '{"text": "a", "n": ' + "9" * 5000 + "}", '{"a":' * 200_000],
    ids=lambda value: repr(value)[:20],
)
def test_a_line_that_no_reader_can_take_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text('{"text": "sound"}\n' + line + "\n")
    with pytest.raises(UserError, match="a line is not JSON") as caught:
        list(read_pieces(find_sources([path]), 1024))
    assert caught.value.where == f"{path}:2"
