"""The processes whose memory is counted: this one, or a command and everything that it started."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from typing import Protocol

import psutil

from dist_trainer.cluster.process_table import children_by_parent, started_ticks

# The walk through the process table is slow on hosts with many processes: it may take this fraction of the time.
_WALK_FRACTION = 0.05


class Processes(Protocol):
    def pids(self) -> Collection[int]: ...

    def rss_bytes(self) -> int | None:
        """Sum of their resident sets; pages shared between them count once for each. None when all have ended."""


class OwnProcess:
    """This process."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def pids(self) -> Collection[int]:
        return (os.getpid(),)

    def rss_bytes(self) -> int | None:
        # After a fork the cached object is that of the parent. Making a new one each time costs more than the reading.
        if self._process.pid != os.getpid():
            self._process = psutil.Process()
        return self._process.memory_info().rss


class OtherProcess:
    """Another process of this host."""

    def __init__(self, pid: int, started: int) -> None:
        """`started`: the process's start in clock ticks since boot, which tells it from another process with the same
        id, in another PID namespace or later. Raises psutil.NoSuchProcess.
        """
        self._process = psutil.Process(pid)
        if started_ticks(pid) != started:
            raise psutil.NoSuchProcess(pid)

    def pids(self) -> Collection[int]:
        return (self._process.pid,)

    def rss_bytes(self) -> int | None:
        try:
            return self._process.memory_info().rss or None
        except psutil.NoSuchProcess:
            return None


class ProcessTree:
    """A process and its descendants. A descendant seen once counts until it ends, even if its parent has ended."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}
        self._next_walk_s = 0.0
        self.num_seen = 0

    def follow(self, root_pid: int) -> None:
        """Follows this process and its descendants from now on."""
        try:
            self._known[root_pid] = psutil.Process(root_pid)
        except psutil.NoSuchProcess:
            return
        self.num_seen += 1

    def pids(self) -> Collection[int]:
        self._walk()
        return tuple(self._known)

    def rss_bytes(self) -> int | None:
        self._walk()
        total = 0
        for pid, process in list(self._known.items()):
            try:
                rss_bytes = process.memory_info().rss
            except psutil.NoSuchProcess:
                rss_bytes = 0
            except psutil.AccessDenied:
                continue
            # A zombie: it has ended, and its parent has not waited for it yet.
            if rss_bytes == 0:
                del self._known[pid]
            total += rss_bytes
        return total if self._known else None

    def _walk(self) -> None:
        started_s = time.monotonic()
        if started_s < self._next_walk_s or not self._known:
            return
        children = children_by_parent()
        open_pids = list(self._known)
        while open_pids:
            for child in children.get(open_pids.pop(), ()):
                if child.pid in self._known:
                    continue
                try:
                    self._known[child.pid] = psutil.Process(child.pid)
                except psutil.NoSuchProcess:
                    continue
                self.num_seen += 1
                open_pids.append(child.pid)
        ended_s = time.monotonic()
        self._next_walk_s = ended_s + (ended_s - started_s) / _WALK_FRACTION
