"""What a guard makes of what its rank prints."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable
from pathlib import Path
from typing import IO

from dist_trainer.cause import CAUSE_FD, Cause, tell_guard
from dist_trainer.launch.guards.rank_output import RankOutput, open_log


class Rank:
    """The pipes of a rank, with the writing ends at hand."""

    def __init__(self, log: IO[bytes] | None = None, pass_on: Callable[[str, bool], None] | None = None) -> None:
        self.selector = selectors.DefaultSelector()
        (out, self.stdout), (err, self.stderr), (causes, self.cause) = (os.pipe() for _ in range(3))
        pipes = [os.fdopen(fd, "rb", buffering=0) for fd in (out, err, causes)]
        self.output = RankOutput(self.selector, *pipes, log, pass_on)


def test_rank_0s_is_passed_on_as_it_comes() -> None:
    passed_on: list[tuple[str, bool]] = []
    rank = Rank(pass_on=lambda text, is_error: passed_on.append((text, is_error)))
    os.write(rank.stdout, "loss é".encode()[:-1])
    rank.output.read()
    os.write(rank.stdout, "é\n".encode()[1:])
    os.write(rank.stderr, b"\xff\n")
    rank.output.read()
    assert passed_on == [("loss ", False), ("é\n", False), ("\udcff\n", True)]
    assert not rank.output.last_lines


def test_of_other_ranks_the_last_lines_are_kept_and_all_goes_to_the_log(tmp_path: Path) -> None:
    log = open_log(tmp_path, 3)
    assert log is not None
    rank = Rank(log)
    text = "".join(f"line {number}\n" for number in range(50))
    os.write(rank.stdout, text.encode())
    rank.output.read()
    assert list(rank.output.last_lines) == [f"line {number}" for number in range(30, 50)]
    assert (tmp_path / "logs" / "rank-3.log").read_text() == text


def test_the_first_cause_counts() -> None:
    rank = Rank()
    assert rank.output.cause is None
    first, second = Cause("config.yaml: no such file", False), Cause("a connection was lost", True)
    for cause in (first, second):
        assert tell_guard(cause, {CAUSE_FD: str(rank.cause)})
    rank.output.read()
    assert rank.output.cause == first


def test_a_pipe_at_its_end_is_waited_for_no_longer() -> None:
    rank = Rank()
    for fd in (rank.stdout, rank.stderr, rank.cause):
        os.close(fd)
    rank.output.read()
    rank.output.read()
    assert not rank.selector.get_map()


def test_a_folder_that_cannot_be_made_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("")
    assert open_log(tmp_path, 0) is None
