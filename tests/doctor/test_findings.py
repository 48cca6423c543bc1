from __future__ import annotations

import pytest

from dist_trainer.doctor.findings import Finding, all_well, grouped, sameness, usual, worst


@pytest.mark.parametrize(
    ("values", "here", "common"),
    [
        ("aab", None, "a"),
        ("abb", None, "b"),
        ("ab", None, "a"),
        ("ab", "b", "b"),
        ("abb", "a", "b"),
        ("ab", "c", "a"),
    ],
    ids=["the first two", "the majority", "a tie: the first", "a tie: the asker's", "a majority beats it", "no vote"],
)
def test_what_is_usual(values: str, here: str | None, common: str) -> None:
    assert usual({f"node{place}": value for place, value in enumerate(values)}, here) == common


def test_hosts_that_agree_are_one_line() -> None:
    assert list(sameness("torch", {"a": "2.6", "b": "2.6"}, level="fail", do="x", here="2.6")) == [
        Finding("ok", "torch", "2.6")
    ]


def test_hosts_that_do_not_are_named_by_what_they_have() -> None:
    found = list(
        sameness(
            "torch", {"a": "2.6", "b": "2.7", "c": "2.6", "d": "2.5", "e": "2.7", "f": "2.6"}, level="fail", do="x"
        )
    )
    assert [(one.level, one.hosts, one.found) for one in found] == [
        ("fail", ("b", "e"), "2.7, where 3 hosts have 2.6"),
        ("fail", ("d",), "2.5, where 3 hosts have 2.6"),
    ]


def test_all_hosts_against_the_one_that_asks() -> None:
    (found,) = sameness("python", {"a": "3.12.1"}, level="fail", do="x", here="3.11.7")
    assert (found.level, found.hosts, found.found) == (
        "warn",
        ("a",),
        "3.12.1, where the doctor itself runs with 3.11.7",
    )


def test_the_same_words_are_one_line() -> None:
    found = list(grouped("warn", "clock", {"a": "late", "b": "early", "c": "late"}, None))
    assert [(one.found, one.hosts) for one in found] == [("late", ("a", "c")), ("early", ("b",))]


def test_the_worst_level() -> None:
    assert worst([]) == "ok"
    assert worst([Finding("ok", "", ""), Finding("warn", "", "")]) == "warn"
    assert worst([Finding("warn", "", ""), Finding("fail", "", ""), Finding("ok", "", "")]) == "fail"


def test_what_is_well_is_said_of_the_hosts_of_which_it_is_known_and_of_no_others() -> None:
    asked = ("node1", "node2")
    assert list(all_well("room", "9 GB free", asked, asked)) == [Finding("ok", "room", "9 GB free")]
    assert list(all_well("room", "9 GB free", ("node2",), asked)) == [
        Finding("ok", "room", "9 GB free", ("node2",)),
        Finding("skip", "room", "not known", ("node1",)),
    ]
    assert list(all_well("room", "0 GB free", (), asked)) == [Finding("skip", "room", "not known")]


def test_what_was_not_checked_makes_nothing_worse() -> None:
    assert worst([Finding("ok", "room", "9 GB free"), Finding("skip", "NUMA", "not known")]) == "ok"
