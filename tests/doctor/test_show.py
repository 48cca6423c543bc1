from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from examinations import exam, host, two_hosts
from rich.console import Console

from dist_trainer.doctor.clock import Offset
from dist_trainer.doctor.examination import Examination, HostReport
from dist_trainer.doctor.facts import Connection, Connections
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.judge import judge
from dist_trainer.doctor.show import dump, hosts_text, show

NUM_HOSTS = 1000


def shown(findings: list[Finding], made: Examination) -> str:
    text = io.StringIO()
    show(findings, made, Console(file=text, width=100, highlight=False))
    return text.getvalue()


@pytest.fixture(scope="module")
def large() -> Examination:
    """1,000 hosts, of which one is down, one in ten has another torch, and one clock is wrong."""
    hosts = []
    for number in range(NUM_HOSTS):
        name = f"node{number:04d}"
        facts = {"packages": {"torch": "2.6.0"}} if number % 10 == 3 else {"packages": {"torch": "2.13.0"}}
        ways = Connections((Connection("node0000", "10.0.0.1", "ib0", 2044, 200_000),), "10.0.0.2")
        hosts.append(host(name, num_slots=8, facts=facts, connections=ways))
    hosts[17] = HostReport("node0017", tuple(range(8)), unreachable="nothing answers", unreachable_kind="no answer")
    hosts[500] = replace(hosts[500], clock=Offset(90.0, 0.001))
    return exam(*hosts)


def test_a_thousand_hosts_are_few_lines(large: Examination) -> None:
    text = shown(judge(large), large)
    assert len(text.splitlines()) < 60
    assert max(map(len, text.splitlines())) <= 100
    assert "node0500" in text
    assert "node[0003,0013,0023" in text
    assert "1000 hosts, 8000 ranks:" in text


def test_what_failed_comes_first_and_says_what_to_do(large: Examination) -> None:
    levels = [finding.level for finding in judge(large)]
    assert levels == sorted(levels, key=["fail", "warn", "ok"].index)
    text = shown([Finding("fail", "clock", "late", ("node1",), "start chronyd")], two_hosts())
    assert "late" in text and "-> start chronyd" in text


def test_json_has_all_of_it(large: Examination) -> None:
    findings = judge(large)
    said = json.loads(dump(findings, large))
    assert said["level"] == "fail"
    assert [tuple(one["hosts"]) for one in said["findings"] if one["check"] == "torch" and one["level"] == "fail"] == [
        tuple(f"node{number:04d}" for number in range(NUM_HOSTS) if number % 10 == 3)
    ]
    assert len(said["examination"]["hosts"]) == NUM_HOSTS
    assert said["examination"]["hosts"][500]["clock"]["seconds"] == 90.0


@pytest.mark.parametrize(
    ("hosts", "text"),
    [
        ((), ""),
        (("node1",), "node1"),
        (("node1", "node2", "node3"), "node[1-3]"),
        (tuple(f"{letter * 9}" for letter in "abcdef"), "aaaaaaaaa,bbbbbbbbb,ccccccccc,ddddddddd and 2 more"),
    ],
)
def test_many_hosts_are_written_short(hosts: tuple[str, ...], text: str) -> None:
    assert hosts_text(hosts) == text
