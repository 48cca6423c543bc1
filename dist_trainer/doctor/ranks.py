"""The trial's ranks on one host: starts them, reads their output, and ends them, even if the doctor is gone."""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

from dist_trainer.doctor.bandwidth import RankSpec, spec_text
from dist_trainer.doctor.facts import RankReport, RankReports, Transfer
from dist_trainer.launch.processes import end_with_parent, signal_name

_MODULE = "dist_trainer.doctor.bandwidth"
_THIS_HOST = "127.0.0.1"


def run_ranks(
    name: str,
    interface: str | None,
    *,
    hosts: dict[str, list[int]],
    port: int,
    device: str,
    limit_s: int,
    stop_fd: int,
) -> RankReports:
    """Runs this host's ranks to their end, at most for `limit_s` seconds, or until `stop_fd` reaches its end.

    `hosts`: each host's slots, in order of ranks; the rendezvous is on the first host. `interface`: the network
    interface that leads to the other hosts.
    """
    specs = rank_specs(name, hosts, port=port, device=device, limit_s=limit_s)
    environ = rank_environ(os.environ, interface if len(hosts) > 1 else "lo")
    ranks = [_Rank(spec, environ) for spec in specs]
    try:
        _listen(ranks, stop_fd, time.monotonic() + limit_s + 1)
    finally:
        for rank in ranks:
            rank.end()
    return RankReports(tuple(rank.report() for rank in ranks))


def rank_specs(name: str, hosts: dict[str, list[int]], *, port: int, device: str, limit_s: int) -> tuple[RankSpec, ...]:
    """The specs of the ranks on host `name`."""
    ranks_by_host, first = [], 0
    for slots in hosts.values():
        ranks_by_host.append(tuple(range(first, first + len(slots))))
        first += len(slots)
    own = ranks_by_host[list(hosts).index(name)]
    address = _THIS_HOST if len(hosts) == 1 else next(iter(hosts))
    return tuple(
        RankSpec(rank, slot, tuple(ranks_by_host), address, port, device, limit_s)
        for rank, slot in zip(own, hosts[name], strict=True)
    )


def rank_environ(environ: os._Environ[str] | dict[str, str], interface: str | None) -> dict[str, str]:
    """The environment for the ranks. Interfaces that the user has set are kept."""
    variables = {"OMP_NUM_THREADS": "1"}
    if interface is not None:
        variables |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return {**variables, **environ, "OMP_NUM_THREADS": "1"}


class _Rank:
    def __init__(self, spec: RankSpec, environ: dict[str, str]) -> None:
        parent_pid = os.getpid()
        self.spec = spec
        self.process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, spec_text(spec)],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: end_with_parent(parent_pid),
        )
        self.texts = {"out": bytearray(), "err": bytearray()}
        self.was_stopped = False

    def end(self) -> None:
        if self.process.poll() is None:
            self.was_stopped = True
            with suppress(ProcessLookupError):
                self.process.kill()
        self.process.wait()

    def report(self) -> RankReport:
        facts: dict[str, Any] = {"stage": "start"}
        transfers = []
        for line in self.texts["out"].decode(errors="replace").splitlines():
            with suppress(ValueError):
                said = json.loads(line)
                if "transfer" in said:
                    transfers.append(Transfer(*said["transfer"]))
                else:
                    facts.update(said)
        if "error" not in facts and self.process.returncode != 0:
            facts["error"] = self._why_it_ended()
        names = {field.name for field in dataclasses.fields(RankReport)}
        known = {name: value for name, value in facts.items() if name in names}
        return RankReport(**{**known, "rank": self.spec.rank, "transfers": tuple(transfers)})

    def _why_it_ended(self) -> str:
        status = self.process.returncode
        if self.was_stopped or status == -14:
            return f"no end within {self.spec.limit_s} s"
        lines = self.texts["err"].decode(errors="replace").strip().splitlines()
        how = f"ended by {signal_name(-status)}" if status < 0 else f"ended with status {status}"
        return f"{how}: {lines[-1]}" if lines else how


def _listen(ranks: list[_Rank], stop_fd: int, deadline_s: float) -> None:
    """Reads until all ranks have closed their output, the deadline has come, or `stop_fd` has ended."""
    with selectors.DefaultSelector() as selector:
        num_open = 0
        for rank in ranks:
            for name, pipe in (("out", rank.process.stdout), ("err", rank.process.stderr)):
                assert pipe is not None
                selector.register(pipe, selectors.EVENT_READ, rank.texts[name])
                num_open += 1
        with suppress(PermissionError):  # epoll refuses a plain file, which never ends for the one who waits
            selector.register(stop_fd, selectors.EVENT_READ, None)
        while num_open and (left_s := deadline_s - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                block = os.read(key.fd, 2**16)
                if key.data is None:
                    if not block:
                        return
                elif block:
                    key.data.extend(block)
                else:
                    selector.unregister(key.fileobj)
                    num_open -= 1
