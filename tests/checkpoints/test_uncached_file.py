"""A file that is written past the page cache, and what becomes of it where the file system has no direct writes."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dist_trainer.checkpoints.uncached_file import BLOCK_BYTES, UncachedFile

REAL_WRITE = os.write


def written(path: Path, sizes: list[int]) -> bytes:
    """What was to be written, in pieces of these sizes."""
    content = np.random.default_rng(0).bytes(sum(sizes))
    with UncachedFile(path) as file:
        place = 0
        for size in sizes:
            file.write(memoryview(content)[place : place + size])
            place += size
        file.finish()
    return content


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [1],
        [4096],
        [BLOCK_BYTES],
        [5, BLOCK_BYTES - 5],
        [BLOCK_BYTES - 1, 2],
        [3, 3 * BLOCK_BYTES + 7, 0, 11, BLOCK_BYTES],
    ],
    ids=str,
)
def test_all_bytes_are_there_in_their_order(tmp_path: Path, sizes: list[int]) -> None:
    content = written(tmp_path / "x", sizes)
    assert (tmp_path / "x").read_bytes() == content


def test_whole_blocks_are_written_past_the_cache_and_the_end_of_the_file_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []

    def write(descriptor: int, content: memoryview) -> int:
        writes.append((is_direct(descriptor), content.nbytes))
        return REAL_WRITE(descriptor, content)

    monkeypatch.setattr(os, "write", write)
    written(tmp_path / "x", [BLOCK_BYTES, BLOCK_BYTES + 100])
    assert writes == [(True, BLOCK_BYTES), (True, BLOCK_BYTES), (False, 100)]


def refuses_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def refuse(descriptor: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETFL and value & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, command, value)

    monkeypatch.setattr(fcntl, "fcntl", refuse)


def refuses_the_write(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, content: memoryview) -> int:
        if is_direct(descriptor):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return REAL_WRITE(descriptor, content)

    monkeypatch.setattr(os, "write", refuse)


@pytest.mark.parametrize("how", [refuses_the_flag, refuses_the_write])
def test_a_file_system_without_direct_writes_gets_it_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[pytest.MonkeyPatch], None]
) -> None:
    how(monkeypatch)
    content = written(tmp_path / "x", [BLOCK_BYTES, 100])
    assert (tmp_path / "x").read_bytes() == content


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_other_errors_of_the_disk_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(OSError) as raised:
        written(tmp_path / "x", [BLOCK_BYTES])
    assert raised.value.errno == number


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError):
        UncachedFile(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "mine"
