from __future__ import annotations

from typing import Any

import pytest
from examinations import ASKER, exam, host, lines, two_hosts

from dist_trainer.doctor.checks import reach
from dist_trainer.doctor.examination import HostReport, Startup

SOUND = {"has_folder": True, "has_interpreter": True, "python": ASKER.python, "import_error": None}


def lost(name: str, words: str, **changes: Any) -> HostReport:
    return HostReport(name, (0, 1), unreachable=words, **changes)


def test_all_hosts_answer() -> None:
    assert lines(reach.check(two_hosts())) == [("ok", (), "2 hosts answer over ssh")]


def test_a_host_that_cannot_be_reached_is_named_with_the_reason() -> None:
    down = lost("node2", "no route leads to it", unreachable_kind="no route")
    bad, good = reach.check(exam(host("node1"), down))
    assert (bad.level, bad.check, bad.hosts, bad.found) == ("fail", "reachable", ("node2",), "no route leads to it")
    assert bad.do is not None and "power the host on" in bad.do
    assert (good.level, good.found) == ("ok", "1 host answers of 2 over ssh")


@pytest.mark.parametrize(
    ("startup", "check", "found"),
    [
        ({"has_folder": False}, "project", "there is no folder /work"),
        ({"has_interpreter": False, "python": None}, "python", "there is no /env/bin/python"),
        ({"python": "3.8.10"}, "python", "/env/bin/python is 3.8.10, where login has 3.11.7"),
        ({"python": None}, "python", "/env/bin/python is no Python that runs, where login has 3.11.7"),
        (
            {"import_error": "ModuleNotFoundError: No module named 'dist_trainer'"},
            "project",
            "ModuleNotFoundError: No module named 'dist_trainer'",
        ),
        ({}, "reachable", "the probe ended with status 1"),
    ],
    ids=["no folder", "no interpreter", "an old Python", "a broken one", "no package", "something else"],
)
def test_a_host_on_which_nothing_starts_says_what_is_missing(startup: dict[str, Any], check: str, found: str) -> None:
    report = lost("node2", "the probe ended with status 1", startup=Startup(**{**SOUND, **startup}))
    finding = next(iter(reach.check(exam(host("node1"), report))))
    assert (finding.level, finding.check, finding.hosts, finding.found) == ("fail", check, ("node2",), found)


@pytest.mark.parametrize(
    ("question", "check"),
    [("clock", "clock"), ("gpus", "GPUs"), ("write", "runs folder"), ("connect", "network"), ("reduce", "all-reduce")],
)
def test_a_question_without_an_answer_is_a_failure(question: str, check: str) -> None:
    found = list(reach.check(two_hosts(unanswered={question: "no answer within 15 s"})))
    assert lines(found, check) == [("fail", ("node2",), "no answer within 15 s")]


def test_a_shell_that_prints_is_worth_a_warning() -> None:
    assert lines(reach.check(two_hosts(noise=("Welcome!",))), "shell") == [
        ("warn", ("node2",), "its shell prints, also when nobody types: 'Welcome!'")
    ]
