"""The respondent: answers the doctor's questions on one host. `python -m dist_trainer.doctor.host [NAME]`.

Each line of stdin is a question as JSON, such as `{"id": 1, "do": "clock"}`; the answer goes to stdout (`protocol`).
When stdin ends the process cleans up and ends, and after a time limit it does so by itself. Packages are imported only
by the questions that are about them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dist_trainer.doctor import protocol
from dist_trainer.doctor.facts import ClockReading, Connections, Folder, Listening, RankReports, Seen, SystemFacts
from dist_trainer.doctor.probes import network, software, system
from dist_trainer.launch.hosts.network import own_address

# Longer than any examination. If the doctor vanishes without closing stdin, the respondent ends after this time.
LIFETIME_S = 180
_STDIN = 0


class Respondent:
    """The state between questions. `name`: what the doctor calls this host."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._listener: socket.socket | None = None
        self._interface: str | None = None
        self._left_behind: list[Callable[[], None]] = []

    def answer(self, question: Mapping[str, Any]) -> Any:
        """A dataclass of `facts`. Raises OSError, ValueError or ImportError if there is no answer."""
        kinds: dict[str, Callable[..., Any]] = {
            "facts": self.facts,
            "clock": self.clock,
            "gpus": self.gpus,
            "write": self.write,
            "look": self.look,
            "listen": self.listen,
            "connect": self.connect,
            "reduce": self.reduce,
        }
        options = {name: value for name, value in question.items() if name not in ("id", "do")}
        return kinds[question["do"]](**options)

    def close(self) -> None:
        for undo in self._left_behind:
            undo()

    def facts(self, ports: list[int]) -> SystemFacts:
        troubles: list[str] = []

        def measured(what: str, measure: Callable[[], Any], otherwise: Any = None) -> Any:
            try:
                return measure()
            except (OSError, ValueError, ImportError) as error:
                troubles.append(f"{what}: {error}")
                return otherwise

        return SystemFacts(
            hostname=socket.gethostname(),
            python=software.python_version(),
            interpreter=sys.executable,
            packages=software.package_versions(),
            torch_cuda=software.torch_cuda_version(),
            revision=software.revision(),
            kernel=os.uname().release,
            cpus=measured("CPUs", system.cpus),
            memory=measured("memory", system.memory),
            limits=measured("limits", system.limits),
            shared_memory=measured("/dev/shm", system.shared_memory),
            infiniband=measured("InfiniBand", system.infiniband_devices, ()),
            ports=measured("ports", lambda: tuple(network.look_at_port(port) for port in ports), ()),
            troubles=tuple(troubles),
        )

    def clock(self) -> ClockReading:
        return ClockReading(time.time())

    def gpus(self) -> Any:
        from dist_trainer.doctor.probes.gpus import find_gpus

        return find_gpus(os.environ)

    def write(self, folder: str, token: str, max_bytes: int) -> Folder:
        from dist_trainer.doctor.probes import folder as probe

        self._left_behind.append(lambda: probe.remove(Path(folder), token, self.name))
        return probe.write(Path(folder), token, self.name, max_bytes)

    def look(self, folder: str, token: str, hosts: list[str]) -> Seen:
        from dist_trainer.doctor.probes import folder as probe

        return probe.look(Path(folder), token, list(network.peers_of(self.name, hosts)))

    def listen(self) -> Listening:
        from dist_trainer.cluster.rank import FIRST_PORT, NUM_PORTS
        from dist_trainer.launch.hosts.ports import first_free_port

        self._listener = network.listen()
        return Listening(self._listener.getsockname()[1], first_free_port(FIRST_PORT + os.getpid() % NUM_PORTS))

    def connect(self, ports: dict[str, int], limit_s: float) -> Connections:
        hosts = list(ports)
        found = [network.connect(peer, ports[peer], limit_s) for peer in network.peers_of(self.name, hosts)]
        self._interface = next((one.interface for one in found if one.interface), None)
        own = own_address(self.name)
        return Connections(tuple(found), own)

    def reduce(self, **options: Any) -> RankReports:
        from dist_trainer.doctor.ranks import run_ranks

        if self._listener is not None:
            self._listener.close()
        return run_ranks(self.name, self._interface, stop_fd=_STDIN, **options)


def lines_of(fd: int) -> Iterator[bytes]:
    """The complete lines read from `fd`, as they arrive, until its end."""
    rest = b""
    while block := os.read(fd, 2**16):
        *whole, rest = (rest + block).split(b"\n")
        yield from whole


def main(argv: list[str]) -> None:
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP):
        # Ends by an exception, so that it cleans up. A signal that is ignored (nohup) stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: sys.exit(1))
    signal.alarm(LIFETIME_S)
    # Under srun all tasks have one command line, so each finds its name in its environment.
    name = argv[0] if argv else os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    respondent = Respondent(name)
    try:
        for line in lines_of(_STDIN):
            question = json.loads(line)
            reply: dict[str, Any]
            try:
                reply = {"answer": dataclasses.asdict(respondent.answer(question))}
            except (OSError, ValueError, ImportError) as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            sys.stdout.write(protocol.pack(name, question["id"], reply))
            sys.stdout.flush()
    finally:
        respondent.close()


if __name__ == "__main__":
    main(sys.argv[1:])
