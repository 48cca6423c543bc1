from __future__ import annotations

from dataclasses import replace

import pytest
from examinations import ASKER, exam, host, lines

from dist_trainer.doctor.checks import clocks
from dist_trainer.doctor.clock import Offset
from dist_trainer.doctor.examination import Examination


def clocks_at(*seconds: float, is_asked: bool = False) -> Examination:
    hosts = [host(f"node{place}", clock=Offset(offset, 0.001)) for place, offset in enumerate(seconds, start=1)]
    return exam(*hosts, asker=replace(ASKER, is_asked=is_asked))


@pytest.mark.parametrize(
    ("made", "findings"),
    [
        (clocks_at(0.0, 90.0), [("fail", ("node2",), "1m 30s ahead of the other clocks")]),
        (clocks_at(0.0, -90.0), [("fail", ("node2",), "1m 30s behind the other clocks")]),
        (clocks_at(0.0, 2.0), [("warn", ("node2",), "2.0s ahead of the other clocks")]),
        (clocks_at(90.0, 90.0), [("fail", ("login",), "1m 30s behind the other clocks")]),
        (clocks_at(0.0, 90.0, is_asked=True), [("fail", ("node2",), "1m 30s ahead of the clock of login")]),
        (clocks_at(90.0, 0.0, 0.0, is_asked=True), [("fail", ("node1",), "1m 30s ahead of the other clocks")]),
        (clocks_at(0.0, 0.5), [("ok", (), "within 500.0 ms of each other, give or take 1.0 ms")]),
        (clocks_at(90.0, is_asked=True), []),
    ],
    ids=["ahead", "behind", "a little", "the asker's own", "of two", "of three", "all is well", "one clock alone"],
)
def test_the_odd_clock_is_named(made: Examination, findings: list[tuple[str, tuple[str, ...], str]]) -> None:
    assert lines(clocks.check(made)) == findings


def test_what_a_slow_connection_leaves_open_is_no_skew() -> None:
    made = exam(host("node1"), host("node2", clock=Offset(3.0, 2.9)))
    assert [level for level, _, _ in lines(clocks.check(made))] == ["ok"]
