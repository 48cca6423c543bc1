"""What the launching process says to the guards that connect to it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from dist_trainer.launch.guards.coordinator import Coordinator, Job
from dist_trainer.launch.guards.membership import Membership
from dist_trainer.launch.guards.protocol import encode

TOKEN = "token"
JOB = Job(
    argv=("python", "-m", "dist_trainer"),
    cwd="/",
    env=(),
    master_addr="node1",
    master_port=None,
    is_port_fixed=False,
    logs_dir=None,
    is_local=False,
)
# As torchrun may count them: by the spelling of the hosts' names.
ARRIVALS = [("node1", 0), ("node1", 1), ("node10", 0), ("node10", 1), ("node2", 0), ("node2", 1)]


@contextmanager
def serving(num_ranks: int, first_host: str | None) -> Iterator[tuple[Coordinator, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    membership = Membership(num_ranks)
    with Coordinator(listener, TOKEN, membership, start_limit_s=30.0, say=print, first_host=first_host) as coordinator:
        coordinator.hand_out(JOB)
        yield coordinator, port


def connect(port: int, rank: int, host: str, local_rank: int, stack: ExitStack) -> tuple[socket.socket, IO[str]]:
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
    connection.sendall(encode("hello", token=TOKEN, rank=rank, host=host, local_rank=local_rank))
    return connection, stack.enter_context(connection.makefile())


def job_of(lines: IO[str]) -> dict[str, Any]:
    return next(message for message in map(json.loads, lines) if message["kind"] == "job")


def ranks_given(first_host: str | None) -> list[int]:
    """To the guards of ARRIVALS, which come in the reverse order."""
    with ExitStack() as stack, serving(len(ARRIVALS), first_host) as (_, port):
        came = [
            connect(port, rank, host, local_rank, stack)
            for rank, (host, local_rank) in reversed(list(enumerate(ARRIVALS)))
        ]
        return [job_of(lines)["rank"] for _, lines in reversed(came)]


def test_ranks_are_those_that_the_launcher_says() -> None:
    assert ranks_given(None) == [0, 1, 2, 3, 4, 5]


def test_where_a_first_host_is_named_it_has_rank_0_and_hosts_follow_by_name_as_people_count() -> None:
    assert ranks_given("node1") == [0, 1, 4, 5, 2, 3]
    assert ranks_given("node2") == [2, 3, 4, 5, 0, 1]


def test_a_guard_that_is_gone_before_the_ranks_have_numbers_is_trouble() -> None:
    with ExitStack() as stack, serving(2, "node1") as (coordinator, port):
        connection, lines = connect(port, 1, "node2", 0, stack)
        lines.close()
        connection.close()
        while not coordinator.membership.members:
            time.sleep(0.01)
        other = connect(port, 0, "node1", 0, stack)[1]
        assert any(json.loads(line)["kind"] == "stop" for line in other)
        assert coordinator.trouble is not None
        assert "node2 (rank 1) is gone" in coordinator.trouble.message


def test_a_stranger_and_a_rank_that_comes_twice_are_sent_away() -> None:
    with ExitStack() as stack, serving(2, None) as (coordinator, port):
        assert job_of(connect(port, 0, "node1", 0, stack)[1])["rank"] == 0
        assert connect(port, 0, "node1", 0, stack)[1].read() == ""
        stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        stranger.sendall(encode("hello", token="guessed", rank=1, host="node1", local_rank=1))
        assert stranger.recv(1 << 16) == b""
        assert set(coordinator.membership.members) == {0}
