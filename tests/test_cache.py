from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.cache import cache_dir, code_digest, keep, kept, write_whole


def test_the_cache_is_where_the_environment_says() -> None:
    assert cache_dir({"XDG_CACHE_HOME": "/scratch/cache"}) == Path("/scratch/cache/dist_trainer")
    assert cache_dir({"XDG_CACHE_HOME": ""}) == cache_dir({}) == Path.home() / ".cache" / "dist_trainer"


def test_a_changed_byte_changes_the_digest(tmp_path: Path) -> None:
    source = tmp_path / "code.py"
    source.write_text("a = 1")
    before = code_digest([source])
    source.write_text("a = 2")
    assert code_digest([source]) != before


def test_a_file_appears_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "made" / "file", "text")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["file"]
    assert (tmp_path / "made" / "file").read_text() == "text"


def test_where_it_cannot_be_written_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_what_is_kept_is_found_again_to_the_byte_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "kept.json"
    assert kept(path) is None
    keep(path, '{"a": "é"}\n')
    assert kept(path) == '{"a": "é"}\n'.encode()
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b" ", whole.replace(b"a", b"b", 1), b"", b"\n", whole[1:]):
        path.write_bytes(damaged)
        assert kept(path) is None
