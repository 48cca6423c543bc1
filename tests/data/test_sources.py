from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from dist_trainer.data.sources import Found, find_sources
from dist_trainer.errors import UserError


def test_a_folder_is_walked_in_sorted_order_for_the_known_suffixes(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.py", "sub/d.jsonl", "e.rst", ".hidden.txt", ".git/f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [source.path.relative_to(tmp_path).as_posix() for source in find_sources([tmp_path]).sources]
    assert names == ["a.md", "b.txt", "sub/c.py", "sub/d.jsonl"]


def test_names_do_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    for place in ("one/text", "two/text"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.txt").write_text("x")
    first, second = (find_sources([tmp_path / place / "text"]).sources for place in ("one", "two"))
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


def names(found: Found) -> list[str]:
    return [source.name for source in found.sources]


def write(folder: Path, *names: str, text: str = "x") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_where_nothing_is_left_out_nothing_is_told(tmp_path: Path) -> None:
    assert find_sources([write(tmp_path / "in", "a.txt", "sub/b.md")]).notices == ()


def test_an_ending_in_capitals_is_that_ending(tmp_path: Path) -> None:
    found = find_sources([write(tmp_path / "in", "A.TXT", "b.Md", "c.JSONL"), write(tmp_path, "d.Py") / "d.Py"])
    assert names(found) == ["in/A.TXT", "in/b.Md", "in/c.JSONL", "d.Py"]
    assert found.notices == ()


def test_what_is_left_out_is_told_by_its_ending(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "a.txt", "b.gz", "c.GZ", "d.rst", "e", ".git/config.txt", ".f.txt")
    first, second = find_sources([folder]).notices
    assert first == f"left out, for they are hidden: 2 (such as {folder}/.f.txt)"
    assert second == (
        "left out, for they end with none of .jsonl, .md, .py, .txt: "
        f"2 .gz, 1 .rst, 1 without one (such as {folder}/b.gz); unpack them first"
    )


def test_of_many_endings_the_most_frequent_are_told(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "in", "a.txt", *(f"{letter}.{letter}{copy}" for letter in "bcdefgh" for copy in "1"), "x.b1"
    )
    (notice,) = find_sources([folder]).notices
    assert ": 2 .b1, 1 .c1, 1 .d1, 1 .e1, 1 .f1, others (such as" in notice


def test_a_folder_of_packed_files_alone_says_why_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no inputs were found") as raised:
        find_sources([write(tmp_path / "in", "a.txt.gz")])
    assert "1 .gz" in str(raised.value.found)
    with pytest.raises(UserError, match="of a kind") as raised:
        find_sources([tmp_path / "in" / "a.txt.gz"])
    assert raised.value.hint == "unpack it first"


def test_linked_folders_and_files_are_read(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "b.txt", "deep/c.txt", "single.txt")
    folder = write(tmp_path / "in", "a.txt")
    (folder / "linked").symlink_to(tmp_path / "elsewhere" / "deep")
    (folder / "z.txt").symlink_to(tmp_path / "elsewhere" / "single.txt")
    found = find_sources([folder])
    assert names(found) == ["in/a.txt", "in/z.txt", "in/linked/c.txt"]
    target = (tmp_path / "elsewhere" / "deep").resolve()
    assert found.notices == (f"read through links to folders: 1 (such as {folder}/linked to {target})",)


def test_links_in_a_circle_are_gone_through_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "a.txt", "sub/b.txt")
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "again").symlink_to("sub")
    found = find_sources([folder])
    assert names(found) == ["in/a.txt", "in/again/b.txt"]
    _, notice = found.notices
    assert notice == (
        f"read once, for they are there under another name: 2 (such as {folder}/again/up, which is {folder})"
    )


@pytest.mark.parametrize("again", ["in", "./in", "in/a.txt", "link", "in/sub/../a.txt", "hard.txt"])
def test_an_input_named_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str) -> None:
    write(tmp_path / "in", "a.txt", "sub/b.txt")
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "hard.txt").hardlink_to(tmp_path / "in" / "a.txt")
    monkeypatch.chdir(tmp_path)
    found = find_sources([Path("in"), Path(again)])
    assert names(found) == ["in/a.txt", "in/sub/b.txt"]
    (notice,) = found.notices
    assert notice.startswith("read once, for they are there under another name: 1 (such as ")


def test_the_very_same_path_counts_once(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt") / "a.txt"
    found = find_sources([path, path])
    assert (names(found), len(found.notices)) == (["a.txt"], 1)


def test_pipes_and_sockets_are_never_opened(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "a.txt")
    os.mkfifo(folder / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "socket.md"))
        found = find_sources([folder])
    assert names(found) == ["in/a.txt"]
    assert found.notices == (f"left out, for they are pipes, sockets or devices: 2 (such as {folder}/pipe.txt)",)
    for path in (folder / "pipe.txt", Path("/dev/null")):
        with pytest.raises(UserError, match="is no file") as raised:
            find_sources([path])
        assert raised.value.where == str(path)


def test_empty_files_are_told(tmp_path: Path) -> None:
    folder = write(write(tmp_path / "in", "a.txt"), "b.txt", text="")
    assert find_sources([folder]).notices == (f"without text, for they are empty: 1 (such as {folder}/b.txt)",)


def test_a_link_that_leads_nowhere_is_told_and_one_to_a_text_is_a_mistake(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "a.txt")
    (folder / "data").symlink_to("/not/mounted")
    assert find_sources([folder]).notices == (
        f"left out, for they are links that lead nowhere: 1 (such as {folder}/data)",
    )
    for target in ("missing", "b.txt"):
        (folder / "b.txt").symlink_to(target)
        with pytest.raises(UserError, match="cannot be read") as raised:
            find_sources([folder])
        assert raised.value.where == str(folder / "b.txt")
        (folder / "b.txt").unlink()


def test_a_folder_that_cannot_be_read_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "in", "a.txt", "closed/b.txt")
    scandir = os.scandir

    def scan(path: Path) -> object:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(UserError, match="cannot be read") as raised:
        find_sources([folder])
    assert (raised.value.where, raised.value.found) == (str(folder / "closed"), "Permission denied")
