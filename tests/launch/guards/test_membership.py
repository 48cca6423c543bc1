"""Which of several troubles came first, told from what the guards say and when."""

from __future__ import annotations

import pytest

from dist_trainer.errors import EXIT_HOST_LOST
from dist_trainer.launch.guards.membership import SETTLE_S, Membership, name_hosts, name_ranks
from dist_trainer.launch.guards.protocol import SILENCE_S


@pytest.fixture
def membership() -> Membership:
    made = Membership(4, ("node1", "node1", "node2", "node2"))
    for rank in range(4):
        made.joined(rank, made.expected_hosts[rank], 0.0)
    return made


def beat(membership: Membership, now_s: float, *ranks: int) -> None:
    for rank in ranks:
        membership.heard(rank, now_s)


def test_nothing_is_wrong_while_all_are_heard(membership: Membership) -> None:
    beat(membership, 100.0, 0, 1, 2, 3)
    assert membership.first_trouble(101.0) is None
    assert not membership.all_ended_well
    for rank in range(4):
        membership.ended(rank, 0, 102.0)
    assert membership.all_ended_well
    assert membership.first_trouble(200.0) is None


def test_the_first_rank_that_failed_is_the_cause(membership: Membership) -> None:
    membership.ended(2, 137, 1.0)
    membership.ended(0, 1, 1.1, lines=["lost connection"])
    trouble = membership.first_trouble(1.0 + SETTLE_S)
    assert trouble is not None
    assert (trouble.rank, trouble.status) == (2, 137)
    assert trouble.message == "rank 2 on node2 was killed by SIGKILL"


def test_what_began_earlier_may_be_told_a_moment_later(membership: Membership) -> None:
    membership.ended(0, 1, 1.0, cause="RuntimeError: connection closed by peer", may_be_echo=True)
    assert membership.first_trouble(1.1) is None, "whose echo it is may be on its way"
    membership.ended(2, 7, 1.1, cause="the loss of step 7 is not finite")
    assert membership.first_trouble(1.1 + SETTLE_S / 2) is None
    trouble = membership.first_trouble(1.1 + SETTLE_S)
    assert trouble is not None
    assert (trouble.rank, trouble.status) == (2, 7)


def test_one_that_others_told_to_end_is_not_the_cause(membership: Membership) -> None:
    membership.ended(0, 143, 1.0, is_echo=True)
    membership.ended(3, 7, 1.2, lines=["why"])
    trouble = membership.first_trouble(2.0)
    assert trouble is not None
    assert (trouble.rank, trouble.status, trouble.lines) == (3, 7, ("why",))


def test_a_cause_of_its_own_counts_over_what_may_be_an_echo_and_over_what_nobody_explains_later(
    membership: Membership,
) -> None:
    membership.ended(0, 1, 1.0, cause="RuntimeError: connection closed by peer", may_be_echo=True)
    membership.ended(2, 1, 1.1, cause="the loss of step 7 is not finite")
    membership.ended(1, 143, 1.2, is_echo=True)
    trouble = membership.first_trouble(2.0)
    assert trouble is not None
    assert (trouble.rank, trouble.cause) == (2, "the loss of step 7 is not finite")


def test_a_rank_that_had_a_cause_when_it_was_told_to_end_is_heard(membership: Membership) -> None:
    """The launcher ends the others as soon as one has ended."""
    membership.ended(0, 1, 1.0, cause="RuntimeError: connection closed by peer", may_be_echo=True)
    membership.ended(2, 1, 1.1, cause="the loss of step 7 is not finite", is_echo=True)
    trouble = membership.first_trouble(2.0)
    assert trouble is not None
    assert trouble.rank == 2


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_same_mistake_of_all_is_told_as_rank_0s_whoever_was_first(
    order: tuple[int, ...], membership: Membership
) -> None:
    for place, rank in enumerate(order):
        membership.ended(rank, 2, 1.0 + place / 100, cause="no such checkpoint")
    trouble = membership.first_trouble(2.0)
    assert trouble is not None
    assert (trouble.rank, trouble.cause, trouble.status) == (0, "no such checkpoint", 2)


def test_the_same_mistake_has_the_status_of_the_rank_that_was_first(membership: Membership) -> None:
    membership.ended(1, 2, 1.0, cause="no such checkpoint")
    membership.ended(0, 143, 1.1, cause="no such checkpoint", is_echo=True)
    trouble = membership.first_trouble(2.0)
    assert trouble is not None
    assert (trouble.rank, trouble.status) == (0, 2)


def test_what_a_killed_rank_was_doing_and_what_its_host_knows_is_told(membership: Membership) -> None:
    why = "out of memory: its control group may have 4.00 GB"
    membership.ended(3, 137, 1.0, why=why, doing="in step 7, micro batch 2, backward")
    trouble = membership.first_trouble(2.0)
    assert trouble is not None
    assert trouble.message == (
        "rank 3 on node2 was killed by SIGKILL in step 7, micro batch 2, backward "
        "(out of memory: its control group may have 4.00 GB)"
    )


def test_a_guard_that_is_gone_means_a_killed_rank(membership: Membership) -> None:
    membership.disconnected(1, 1.0)
    trouble = membership.first_trouble(1.5)
    assert trouble is not None
    assert (trouble.rank, trouble.status) == (1, 137)


def test_when_all_guards_of_a_host_are_gone_it_is_the_host(membership: Membership) -> None:
    membership.disconnected(3, 1.0)
    membership.disconnected(2, 1.01)
    trouble = membership.first_trouble(1.5)
    assert trouble is not None
    assert (trouble.rank, trouble.status) == (None, EXIT_HOST_LOST)
    assert trouble.message == "node2 (ranks 2-3) is gone: every connection to it was closed at once"


def test_where_a_host_has_one_rank_its_guard_stands_for_it() -> None:
    membership = Membership(2, ("node1", "node2"))
    for rank in (0, 1):
        membership.joined(rank, membership.expected_hosts[rank], 0.0)
    membership.disconnected(1, 1.0)
    trouble = membership.first_trouble(2.0)
    assert trouble is not None
    assert trouble.message == "node2 (rank 1) is gone: every connection to it was closed at once"
    assert trouble.status == EXIT_HOST_LOST


def test_a_connection_closed_after_the_end_is_no_trouble(membership: Membership) -> None:
    membership.ended(1, 0, 1.0)
    membership.disconnected(1, 1.1)
    assert membership.first_trouble(2.0) is None


def test_a_failure_beside_a_silent_host_waits_for_that_host(membership: Membership) -> None:
    """The others' lost connections are the echo of a host that is down, and are heard of first."""
    beat(membership, 9.0, 0, 1)
    membership.ended(0, 1, 9.0, lines=["connection closed by peer"])
    assert membership.first_trouble(9.0 + SETTLE_S) is None
    trouble = membership.first_trouble(SILENCE_S + 0.1)
    assert trouble is not None
    assert trouble.message == "nothing was heard for 10 s from node2 (ranks 2-3): down, or cut off"
    assert trouble.status == EXIT_HOST_LOST


def test_a_host_that_is_heard_again_was_not_the_cause(membership: Membership) -> None:
    beat(membership, 9.0, 0, 1)
    membership.ended(0, 1, 9.0)
    beat(membership, 9.9, 1, 2, 3)
    trouble = membership.first_trouble(10.0)
    assert trouble is not None
    assert trouble.rank == 0


def test_hosts_that_did_not_report_are_named() -> None:
    membership = Membership(4, ("node1", "node1", "node2", "node2"))
    membership.joined(0, "node1", 0.0)
    assert membership.missing_hosts() == {"node1": [1], "node2": [2, 3]}
    assert not membership.is_complete


@pytest.mark.parametrize(
    ("ranks", "text"), [([0], "0"), ([0, 1], "0-1"), ([5, 0, 1, 2], "0-2, 5"), (range(8192), "0-8191")]
)
def test_ranks_are_named_shortly(ranks: list[int], text: str) -> None:
    assert name_ranks(ranks) == text


def test_of_very_many_hosts_the_first_are_named() -> None:
    assert name_hosts({"n1": [0, 1], "n2": [2]}) == "n1 (ranks 0-1); n2 (rank 2)"
    text = name_hosts({f"n{host}": range(8 * host, 8 * host + 8) for host in range(1000)})
    assert text.startswith("n0 (ranks 0-7); n1 (ranks 8-15); ") and text.endswith("; and 992 more hosts")
    assert len(text) < 250
