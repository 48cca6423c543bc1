"""What the launching process says to the guards that connect to it, and how little to anybody else."""

from __future__ import annotations

import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from guard_client import SECRET, GuardClient, is_closed, wait_until

from dist_trainer.errors import UserError
from dist_trainer.launch.guards import connections as connections_module
from dist_trainer.launch.guards import coordinator as coordinator_module
from dist_trainer.launch.guards.connecting import EndedError, connect
from dist_trainer.launch.guards.connections import NUM_SPARE_PLACES
from dist_trainer.launch.guards.coordinator import Coordinator
from dist_trainer.launch.guards.job import Job
from dist_trainer.launch.guards.membership import Membership
from dist_trainer.launch.guards.proof import HELLO_BYTES, MAGIC, GuardProof
from dist_trainer.launch.guards.protocol import SILENCE_S, encode

JOB = Job(
    argv=("python", "-m", "dist_trainer"),
    cwd="/",
    env=(),
    master_addr="node1",
    master_port=None,
    is_port_fixed=False,
    logs_dir=None,
    is_local=False,
    grace_s=20.0,
)
# As torchrun may count them: by the spelling of the hosts' names.
ARRIVALS = [("node1", 0), ("node1", 1), ("node10", 0), ("node10", 1), ("node2", 0), ("node2", 1)]


@contextmanager
def serving(
    num_ranks: int, first_host: str | None = None, say: Callable[[str], None] = print
) -> Iterator[tuple[Coordinator, int]]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    port = listener.getsockname()[1]
    membership = Membership(num_ranks)
    with Coordinator(listener, SECRET, membership, start_limit_s=30.0, say=say, first_host=first_host) as coordinator:
        coordinator.hand_out(JOB)
        yield coordinator, port


def guard(port: int, rank: int, host: str, local_rank: int, stack: ExitStack) -> GuardClient:
    client = stack.enter_context(GuardClient(port))
    client.hello(rank, host, local_rank)
    return client


def ranks_given(first_host: str | None) -> list[int]:
    """To the guards of ARRIVALS, which come in the reverse order."""
    with ExitStack() as stack, serving(len(ARRIVALS), first_host) as (_, port):
        came = [
            guard(port, rank, host, local_rank, stack)
            for rank, (host, local_rank) in reversed(list(enumerate(ARRIVALS)))
        ]
        return [client.first("job")["rank"] for client in reversed(came)]


def test_ranks_are_those_that_the_launcher_says() -> None:
    assert ranks_given(None) == [0, 1, 2, 3, 4, 5]


def test_where_a_first_host_is_named_it_has_rank_0_and_hosts_follow_by_name_as_people_count() -> None:
    assert ranks_given("node1") == [0, 1, 4, 5, 2, 3]
    assert ranks_given("node2") == [2, 3, 4, 5, 0, 1]


def test_no_guard_leaves_before_all_are_here() -> None:
    with ExitStack() as stack, serving(2) as (_, port):
        quick = guard(port, 0, "node1", 0, stack)
        quick.say("ended", status=0, **ENDED)
        assert [quick.first(kind)["kind"] for kind in ("job", "beat")]
        late = guard(port, 1, "node1", 1, stack)
        kinds = iter(message["kind"] for message in quick.messages())
        assert next(kind for kind in kinds if kind != "beat") == "bye"
        late.say("ended", status=0, **ENDED)
        assert late.first("bye")


def test_a_guard_that_is_gone_before_the_ranks_have_numbers_is_trouble() -> None:
    with ExitStack() as stack, serving(2, "node1") as (coordinator, port):
        with GuardClient(port) as gone:
            gone.hello(1, "node2")
        wait_until(lambda: coordinator.membership.members)
        assert guard(port, 0, "node1", 0, stack).first("end")
        assert coordinator.trouble is not None
        assert "node2 (rank 1) is gone" in coordinator.trouble.message


def test_a_rank_that_comes_twice_is_sent_away() -> None:
    with ExitStack() as stack, serving(2) as (coordinator, port):
        assert guard(port, 0, "node1", 0, stack).first("job")["rank"] == 0
        again = guard(port, 0, "node1", 0, stack)
        assert next((message for message in again.messages() if message["kind"] != "beat"), None) is None
        assert set(coordinator.membership.members) == {0}


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


def test_a_guard_counts_as_there_while_it_is_connected_and_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(coordinator_module, "time", clock)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        membership = Membership(2)
        coordinator = Coordinator(listener, SECRET, membership, start_limit_s=30.0, say=print)
        assert not coordinator.has_guards
        for rank in range(2):
            membership.joined(rank, "node1", clock.now_s)
        assert coordinator.has_guards
        clock.now_s += SILENCE_S + 1
        assert not coordinator.has_guards, "silent for so long they cannot be told anything"
        membership.heard(1, clock.now_s)
        assert coordinator.has_guards
        membership.disconnected(1, clock.now_s)
        assert not coordinator.has_guards


def test_once_the_ranks_are_to_end_they_are_not_told_again_to_stop_in_good_order() -> None:
    with ExitStack() as stack, serving(2) as (coordinator, port):
        first = guard(port, 0, "node1", 0, stack)
        first.first("job")
        coordinator.stop()
        coordinator.end()
        coordinator.stop()
        first.say("ended", status=0, **ENDED)
        told = [message["kind"] for message in first.messages_until("bye")]
        assert [kind for kind in told if kind in ("stop", "end")] == ["stop", "end"]
        assert "end" in [message["kind"] for message in guard(port, 1, "node1", 1, stack).messages_until("end")]


def test_a_signal_is_passed_on_to_all_ranks_or_to_none() -> None:
    with ExitStack() as stack, serving(2) as (coordinator, port):
        first = guard(port, 0, "node1", 0, stack)
        first.first("job")
        assert not coordinator.pass_on(signal.SIGUSR1), "a rank is missing"
        second = guard(port, 1, "node1", 1, stack)
        second.first("job")
        assert coordinator.pass_on(signal.SIGUSR1)
        assert [one.first("signal")["number"] for one in (first, second)] == [signal.SIGUSR1] * 2


def test_a_rank_that_stopped_at_a_signal_has_not_failed_and_the_others_stop_by_themselves() -> None:
    with ExitStack() as stack, serving(2) as (coordinator, port):
        guards = [guard(port, rank, "node1", rank, stack) for rank in range(2)]
        for one in guards:
            one.first("job")
        stopped = ENDED | {"cause": "stopped by SIGUSR1", "is_stop": True}
        guards[1].say("ended", status=138, **stopped)
        wait_until(lambda: coordinator.trouble is not None)
        assert coordinator.trouble is not None and coordinator.trouble.is_stop
        guards[0].say("ended", status=138, **stopped)
        told = [message["kind"] for message in guards[0].messages_until("bye")]
        assert "end" not in told and "stop" not in told


ENDED = {
    "lines": [],
    "is_echo": False,
    "why": None,
    "cause": None,
    "may_be_echo": False,
    "is_stop": False,
    "doing": None,
}
SENT_AWAY = "a connection from 127.0.0.1 did not know this run's secret, and was closed"


def stranger(port: int, stack: ExitStack, *, limit_s: float = 10) -> socket.socket:
    return stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=limit_s))


def recorded_guard(port: int) -> bytes:
    """All that a guard sends, from its first byte to its first message, as somebody on the way may record it."""
    proof = GuardProof(SECRET)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(proof.hello)
        answer, channel = proof.answer(connection.recv(64))
        hello = channel.seal(b'{"kind": "hello", "rank": 1, "host": "node1", "local_rank": 1}')
        connection.sendall(answer + hello)
        assert connection.recv(1) != b""
    return proof.hello + answer + hello


ATTACKS = {
    "nested": b"[" * 200_000,
    "surrogate": b'{"kind": "hello", "token": "\\ud800", "rank": 1}\n',
    "garbage": bytes(range(256)) * 100,
    "nothing": b"",
    "garbage behind a greeting": MAGIC + bytes(HELLO_BYTES - len(MAGIC)) + b"\xff" * 1000,
    "its own proof sent back": MAGIC + bytes(HELLO_BYTES - len(MAGIC)),
    "a line without end": MAGIC[:4] + b"x" * (64 << 20),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_stranger_sends_neither_ends_nor_joins_a_run(attack: str) -> None:
    said: list[str] = []
    with ExitStack() as stack, serving(2, say=said.append) as (coordinator, port):
        first = guard(port, 0, "node1", 0, stack)
        other = stranger(port, stack)
        try:
            other.sendall(ATTACKS[attack])
            if attack == "its own proof sent back":
                other.sendall(other.recv(64)[32:])
            if attack == "nothing":
                other.shutdown(socket.SHUT_WR)
            assert is_closed(other)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert guard(port, 1, "node1", 1, stack).first("job")["rank"] == 1
        assert first.first("job")["rank"] == 0
        assert coordinator.trouble is None
        assert said == (
            []
            if attack == "nothing"
            else ["a connection from 127.0.0.1 did not know this run's secret, and was closed"]
        )


@pytest.mark.parametrize("is_believed", [True, False])
def test_a_guard_that_ends_early_is_no_stranger_and_one_with_another_secret_is(is_believed: bool) -> None:
    said: list[str] = []
    with ExitStack() as stack, serving(1, say=said.append) as (_, port):
        if is_believed:
            early = stranger(port, stack)
            early.sendall(GuardProof(SECRET).hello)
            early.recv(64, socket.MSG_WAITALL)
            early.shutdown(socket.SHUT_WR)
            assert is_closed(early)
        else:
            told_to_end = iter([False, False, True])
            with pytest.raises(EndedError):
                connect(("127.0.0.1", port), b"another secret", told_to_end=lambda: next(told_to_end, True))
        assert guard(port, 0, "node1", 0, stack).first("job")
    assert bool(said) != is_believed


def test_what_a_guard_has_said_is_worth_nothing_said_again() -> None:
    with serving(2) as (coordinator, port):
        recorded = recorded_guard(port)
        wait_until(lambda: coordinator.membership.members)
    with ExitStack() as stack, serving(2) as (coordinator, port):
        guard(port, 0, "node1", 0, stack)
        again = stranger(port, stack)
        again.sendall(recorded)
        assert is_closed(again)
        assert set(coordinator.membership.members) == {0}


@pytest.mark.parametrize("is_changed", [True, False])
def test_a_message_that_is_changed_or_repeated_ends_the_connection_and_is_not_taken(is_changed: bool) -> None:
    with ExitStack() as stack, serving(2) as (coordinator, port):
        client = guard(port, 0, "node1", 0, stack)
        client.first("job")
        if is_changed:
            ended = client.channel.seal(encode("ended", status=1, **ENDED))
            client.socket.sendall(ended.replace(b'"status": 1', b'"status": 0'))
        else:
            client.socket.sendall(client.say("beat"))
        wait_until(lambda: coordinator.trouble)
        assert coordinator.membership.members[0].is_gone


def test_another_secret_is_refused_on_both_sides() -> None:
    said: list[str] = []
    with serving(1, say=said.append) as (coordinator, port):
        with pytest.raises(UserError, match="does not know this run's secret"):
            GuardClient(port, b"another secret, of another user.")
        assert not coordinator.membership.members
    assert said == [SENT_AWAY]


@pytest.mark.parametrize("greets", [False, True])
def test_a_flood_of_connections_neither_keeps_guards_out_nor_stays(greets: bool) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_strangers = min(10_000, hard - 1000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, num_strangers + 500), hard))
    try:
        with ExitStack() as stack, serving(2) as (coordinator, port):
            first = guard(port, 0, "node1", 0, stack)
            first.first("job")
            most = 0
            for number in range(num_strangers):
                most = max(most, len(coordinator._connections))
                connection = stranger(port, stack)
                if greets:
                    connection.sendall(MAGIC + bytes(HELLO_BYTES - len(MAGIC)))
                if number == num_strangers // 2:
                    second = guard(port, 1, "node1", 1, stack)
                    assert second.first("job")["rank"] == 1
                    break
            assert NUM_SPARE_PLACES <= most <= 3 + NUM_SPARE_PLACES
            assert coordinator.trouble is None
            assert first.first("beat")
            # All guards are there: nobody else is let in any more.
            with pytest.raises(ConnectionRefusedError):
                stranger(port, stack)
            assert second.first("beat")
            assert len(coordinator._connections) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_who_proves_nothing_is_sent_away_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "PROOF_LIMIT_S", 0.2)
    with ExitStack() as stack, serving(1) as (_, port):
        slow = stranger(port, stack)
        slow.sendall(MAGIC)
        assert is_closed(slow)


def test_what_ranks_print_does_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as stack, serving(1) as (coordinator, port):
        client = guard(port, 0, "node1", 0, stack)
        text = "loss\t7.5\r\n\x1b]0;title\x07\x9b2J\udc9b\u202e\ud800"
        client.say("output", text=text, is_error=False)
        client.say("ended", status=0, **ENDED)
        client.first("bye")
        assert coordinator.trouble is None
    assert capsys.readouterr().out == "loss\t7.5\n\\x1b]0;title\\x07\\x9b2J\\x9b\\u202e\\ud800"
