from __future__ import annotations

import os
from pathlib import Path

import pytest

from dist_trainer.cause import CAUSE_FD, Cause, has_guard, read_cause, tell_guard


def test_what_a_rank_tells_arrives_as_it_is() -> None:
    read_fd, write_fd = os.pipe()
    cause = Cause("a key is wrong\n  found:    'caf\udce9'", may_be_echo=False)
    assert tell_guard(cause, {CAUSE_FD: str(write_fd)})
    assert read_cause(os.read(read_fd, 4096)) == cause
    os.close(read_fd)
    assert not tell_guard(cause, {CAUSE_FD: str(write_fd)}), "a guard that is gone was told nothing"
    os.close(write_fd)


@pytest.mark.parametrize("number", ["", "x", "-1", "²", "99999999"])
def test_without_a_pipe_there_is_no_guard(number: str, tmp_path: Path) -> None:
    assert not has_guard({CAUSE_FD: number})


def test_a_program_that_a_rank_started_does_not_write_into_its_own_files(tmp_path: Path) -> None:
    with (tmp_path / "mine").open("wb") as file:
        assert not tell_guard(Cause("x", may_be_echo=True), {CAUSE_FD: str(file.fileno())})
    assert (tmp_path / "mine").read_bytes() == b""


@pytest.mark.parametrize("line", [b"", b'{"text": "cut o', b"[" * 100_000, b"[]", b'{"text": 1, "may_be_echo": false}'])
def test_what_is_no_whole_line_is_no_cause(line: bytes) -> None:
    assert read_cause(line) is None
