from __future__ import annotations

from dataclasses import replace

import pytest
from examinations import exam, host, lines, with_trial

from dist_trainer.doctor.checks import bandwidth
from dist_trainer.doctor.examination import Examination, Trial
from dist_trainer.doctor.facts import RankReport, RankReports, Transfer

GB_S = 1e9


def ring(num_hosts: int, slow: dict[tuple[int, int], float]) -> Examination:
    hosts = [host(f"node{number}") for number in range(1, num_hosts + 1)]
    speeds = {}
    for here in range(num_hosts):
        there = (here + 1) % num_hosts
        for one, other in ((here, there), (there, here)):
            speeds[hosts[one].name, hosts[other].name] = slow.get((one + 1, other + 1), 10 * GB_S)
    return with_trial(hosts, speeds)


def links(made: Examination) -> list[tuple[str, tuple[str, ...], str]]:
    return lines(bandwidth.check(made), "links")


def test_links_that_are_alike() -> None:
    assert links(ring(4, {(1, 2): 8 * GB_S})) == [("ok", (), "at least 8.00 GB/s each way, 10.00 GB/s as a rule")]


def test_the_slow_direction_of_one_link_is_named() -> None:
    assert links(ring(4, {(2, 3): 1 * GB_S})) == [
        ("fail", ("node2", "node3"), "node2 to node3: 1.00 GB/s, where 10.00 GB/s is usual")
    ]


def test_half_as_fast_is_a_warning() -> None:
    assert [level for level, _, _ in links(ring(4, {(2, 3): 4 * GB_S}))] == ["warn"]


def test_a_host_all_of_whose_links_are_slow_is_named_once_each_way() -> None:
    slow = {(2, 1): 1 * GB_S, (2, 3): 1.2 * GB_S, (1, 2): 0.5 * GB_S, (3, 2): 0.5 * GB_S}
    assert links(ring(5, slow)) == [
        ("fail", ("node2",), "receives slowly on every link: 0.50 GB/s at most, where 10.00 GB/s is usual"),
        ("fail", ("node2",), "sends slowly on every link: 1.20 GB/s at most, where 10.00 GB/s is usual"),
    ]


@pytest.mark.parametrize(
    ("slow", "finding"),
    [
        (
            {(2, 1): 1 * GB_S},
            ("fail", ("node1", "node2"), "node2 to node1: 1.00 GB/s, where 10.00 GB/s is usual"),
        ),
        (
            {(1, 2): 2.4e6, (2, 1): 2.5e6},
            ("fail", ("node1", "node2"), "2.5 MB/s each way, which is slow for any network"),
        ),
        (
            {(1, 2): 50e6, (2, 1): 50e6},
            ("warn", ("node1", "node2"), "50.0 MB/s each way, which is slow for any network"),
        ),
        ({}, ("ok", (), "at least 10.00 GB/s each way, 10.00 GB/s as a rule")),
    ],
    ids=["one way", "both ways, as bad as can be", "both ways", "none"],
)
def test_the_one_link_of_two_hosts(
    slow: dict[tuple[int, int], float], finding: tuple[str, tuple[str, ...], str]
) -> None:
    assert links(ring(2, slow)) == [finding]


def test_a_network_that_is_slow_everywhere_names_no_host() -> None:
    slow = {(one, other): 40e6 for one in range(1, 5) for other in range(1, 5)}
    assert links(ring(4, slow)) == [("warn", (), "40.0 MB/s each way, which is slow for any network")]


def test_the_slowest_pair_of_ranks_is_the_speed_of_a_link() -> None:
    made = [host("node1"), host("node2")]
    fast, slow = Transfer(0, 2, 10**9, 0.1), Transfer(1, 3, 10**9, 1.0)
    ranks = RankReports((RankReport(0, "end", transfers=(fast,)), RankReport(1, "end", transfers=(slow,))))
    trial = Trial({one.name: one.slots for one in made}, "cuda")
    assert bandwidth.links_of(exam(replace(made[0], ranks=ranks), made[1], trial=trial)) == [
        bandwidth.Link("node1", "node2", 1e9)
    ]


def test_on_one_host_the_links_are_between_its_gpus() -> None:
    ranks = RankReports((RankReport(0, "end", transfers=(Transfer(0, 1, 10**9, 1.0), Transfer(1, 0, 10**9, 1.0))),))
    trial = Trial({"node1": (0, 1)}, "cuda")
    found = bandwidth.links_of(exam(replace(host("node1"), ranks=ranks), trial=trial))
    assert {(link.source, link.target) for link in found} == {("rank 0", "rank 1"), ("rank 1", "rank 0")}


def test_the_all_reduce_is_told_with_its_rate() -> None:
    made = with_trial([host("node1"), host("node2")], {})
    assert lines(bandwidth.check(made), "all-reduce") == [("ok", (), "4 ranks, 16.8 MB over NCCL: 2.52 GB/s a rank")]


def test_the_all_reduce_is_rated_by_the_slowest_rank() -> None:
    made = with_trial([host("node1"), host("node2")], {})
    reports = made.hosts[1].ranks
    assert reports is not None
    first, *others = reports.ranks
    slower = replace(first, all_reduce_s=2 * (first.all_reduce_s or 0.0))
    slowed = replace(made.hosts[1], ranks=replace(reports, ranks=(slower, *others)))
    (line,) = lines(bandwidth.check(replace(made, hosts=(made.hosts[0], slowed))), "all-reduce")
    assert line[2].endswith("1.26 GB/s a rank")


def test_one_gpu_has_no_rate() -> None:
    made = with_trial([host("node1", num_slots=1)], {})
    assert lines(bandwidth.check(made)) == [("ok", (), "CUDA and NCCL work for the one rank")]


def test_hosts_that_took_no_part_are_named() -> None:
    made = with_trial([host("node1"), host("node2")], {})
    without = replace(made, trial=Trial({"node1": (0, 1)}, "cpu"))
    assert lines(bandwidth.check(without), "all-reduce") == [
        ("ok", (), "2 ranks, 16.8 MB over gloo: 1.68 GB/s a rank, without node2")
    ]


def test_ranks_that_failed_say_where() -> None:
    ranks = RankReports((RankReport(2, "meet", "no end within 60 s"),))
    made = exam(host("node1"), host("node2", ranks=ranks), trial=Trial({"node1": (0, 1), "node2": (0, 1)}))
    assert lines(bandwidth.check(made)) == [("fail", ("node2",), "rank 2 at meet: no end within 60 s")]


@pytest.mark.parametrize(
    ("num_slots", "facts", "level"),
    [(2, {}, "warn"), (1, {}, "skip"), (2, None, "skip")],
    ids=["it should have been", "one rank", "no host answered, which is told elsewhere"],
)
def test_no_trial_is_said(num_slots: int, facts: dict[str, object] | None, level: str) -> None:
    made = exam(host("node1", num_slots=num_slots, facts=facts), trial=Trial(why_not="of something"))
    assert lines(bandwidth.check(made)) == [(level, (), "not tried: of something")]
