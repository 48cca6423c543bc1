from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from dist_trainer.typed_json import Count, DamagedError, Finite, Seconds, parse, read


@dataclass(frozen=True)
class Inner:
    size: Count


@dataclass(frozen=True)
class Thing:
    name: str
    inner: tuple[Inner, ...]
    seconds: Seconds
    figure: Finite
    other: Count | None = None


SOUND = b'{"name": "a", "inner": [{"size": 3}], "seconds": 2, "figure": -0.5, "of a newer version": [1]}'


def test_what_was_written_is_read_back_as_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "thing.json").write_bytes(SOUND)
    assert read(tmp_path / "thing.json", Thing) == Thing("a", (Inner(3),), 2.0, -0.5)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        (b'"a"', b"7", "name"),
        (b"3", b'"3"', "inner.0.size"),
        (b"3", b"-3", "inner.0.size"),
        (b"3", b"3.5", "inner.0.size"),
        (b"3", b"true", "inner.0.size"),
        (b"3", b"9223372036854775808", "inner.0.size"),
        (b'[{"size": 3}]', b"{}", "inner"),
        (b'"seconds": 2, ', b"", "seconds"),
        (b"2", b"1e300", "seconds"),
        (b"-0.5", b"NaN", "figure"),
        (b"-0.5", b"Infinity", "figure"),
        (b"-0.5", b"9" * 5000, None),
        (b"-0.5", b"[" * 5000, None),
        (SOUND, b"", None),
        (SOUND, b"[]", None),
        (SOUND, b"\xff", None),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_damaged_is_told_with_its_place(old: bytes, new: bytes, key: str | None) -> None:
    assert old in SOUND
    with pytest.raises(DamagedError) as caught:
        parse(SOUND.replace(old, new, 1), Thing)
    assert caught.value.key == key and caught.value.problem and "\n" not in str(caught.value)
