"""A guard over its rank, both processes of their own; this one plays the launching process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_trainer.launch.guards.connections import Connection, Connections
from dist_trainer.launch.guards.job import Job
from dist_trainer.launch.guards.protocol import Message, encode
from dist_trainer.launch.hosts.run_secret import RunSecret

ROOT = Path(__file__).parents[3]
SECRET = RunSecret(b"what launch and its guards know.")
LONG_S = 3600.0
LIMIT_S = 30.0
RANK = """\
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, lambda *_: print("heard", flush=True))
print(os.getpid(), flush=True)
while True:
    signal.pause()
"""


class Launch:
    """What the one guard of a run of one rank has said, and how to answer it."""

    def __init__(self, connections: Connections, heard: list[tuple[Connection, Message]]) -> None:
        self._connections, self._heard = connections, heard

    def kinds(self) -> list[str]:
        return [message["kind"] for _, message in self._heard]

    def first(self, kind: str) -> Message:
        return next(message for _, message in self._heard if message["kind"] == kind)

    def say(self, *messages: bytes) -> None:
        for message in messages:
            self._connections.send(self._heard[0][0], message)

    def listen_until(self, is_so: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + LIMIT_S
        while not is_so():
            assert time.monotonic() < deadline_s, f"the guard said {self.kinds()} only"
            self._connections.turn(0.05)
            self._connections.flush()


@pytest.fixture
def launch(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Launch]:
    """A guard is connected, and its rank, which does not end by SIGTERM, has begun. The parameter, if there is one, is
    the rank's grace in seconds.
    """
    heard: list[tuple[Connection, Message]] = []

    def take(connection: Connection, message: Message) -> bool:
        heard.append((connection, message))
        return True

    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    job = Job(
        argv=(sys.executable, "-c", RANK),
        cwd=str(tmp_path),
        env=(),
        master_addr="127.0.0.1",
        master_port=None,
        is_port_fixed=False,
        logs_dir=None,
        is_local=False,
        grace_s=getattr(request, "param", LONG_S),
    )
    with Connections(listener, SECRET.value, 1, take=take, gone=lambda connection: None, say=print) as connections:
        process = subprocess.Popen(
            [sys.executable, "-m", "dist_trainer.launch.guards.rank_guard", address, SECRET.source],
            cwd=tmp_path,
            env=os.environ | place | SECRET.variables({}) | {"PYTHONPATH": str(ROOT)},
        )
        made = Launch(connections, heard)
        try:
            made.listen_until(lambda: "hello" in made.kinds())
            made.say(job.message(0, "", None))
            made.listen_until(lambda: "output" in made.kinds())
            yield made
        finally:
            process.kill()
            process.wait()
            if "output" in made.kinds() and "ended" not in made.kinds():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(made.first("output")["text"]), signal.SIGKILL)


def test_a_guard_says_that_it_is_there_while_its_rank_is_silent(launch: Launch) -> None:
    num_beats = launch.kinds().count("beat")
    launch.listen_until(lambda: launch.kinds().count("beat") == num_beats + 2)


@pytest.mark.parametrize("launch", [0.1], indirect=True)
def test_a_rank_that_does_not_stop_in_its_grace_is_killed(launch: Launch) -> None:
    launch.say(encode("stop"))
    launch.listen_until(lambda: "ended" in launch.kinds())
    assert launch.first("ended")["status"] == 137


def test_a_rank_that_is_to_end_is_killed_though_it_was_given_time_before(launch: Launch) -> None:
    launch.say(encode("stop"), encode("end"))
    launch.listen_until(lambda: "ended" in launch.kinds())
    assert launch.first("ended")["status"] == 137


def test_a_signal_is_passed_on_to_the_rank(launch: Launch) -> None:
    launch.say(encode("signal", number=int(signal.SIGUSR1)))
    launch.listen_until(lambda: launch.kinds().count("output") == 2)
    assert "ended" not in launch.kinds()
