"""The thread that samples at regular times. It shares no lock with the program and never delays the program's end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from dist_trainer.monitor.gpu.diagnostics import Diagnostic, Say
from dist_trainer.monitor.ticks import next_tick_s
from dist_trainer.records import SAMPLER_FAILED

THREAD_NAME = "dist_trainer-monitor"
FULL_EVERY_S = 1.0
# A driver that hangs must not keep a run from ending.
STOP_LIMIT_S = 2.0


class Looked(Protocol):
    """Anything that is sampled repeatedly. Both methods raise OSError when a file cannot be written."""

    def look(self, *, is_full: bool) -> None: ...

    def close(self) -> None: ...


class Sampler:
    """Samples memory of each series every `interval_s`, and all of its fields every second.

    `cpu_s`: CPU time that the thread had used at its last look.
    """

    def __init__(self, series: Sequence[Looked], interval_s: float, say: Say) -> None:
        self.series = tuple(series)
        self.cpu_s = 0.0
        self._interval_s = interval_s
        self._say = say
        self._thread: threading.Thread | None = None
        # A lock held until the thread is to stop. Event.wait would do, but makes a new lock for each wait.
        self._running = threading.Lock()
        self._pid = 0

    def start(self) -> None:
        """Starts the thread in the calling process."""
        self._pid = os.getpid()
        self._running = threading.Lock()
        self._running.acquire()
        self._thread = threading.Thread(target=self._run, args=(self._running,), name=THREAD_NAME, daemon=True)
        self._thread.start()

    def go_on_after_fork(self) -> None:
        """Restarts the thread in a forked child, which inherits no threads; does nothing in any other process."""
        if self._pid and self._pid != os.getpid():
            self.start()

    def stop(self) -> None:
        """Takes a last sample, writes what was held back, and ends the thread; gives up on a driver that hangs."""
        thread, self._thread = self._thread, None
        if thread is None or self._pid != os.getpid():
            return
        self._running.release()
        thread.join(STOP_LIMIT_S)

    def look(self, *, is_full: bool) -> None:
        """Takes one sample of each series. Raises OSError when a file cannot be written."""
        for series in self.series:
            series.look(is_full=is_full)

    def _run(self, running: threading.Lock) -> None:
        start_s = next_full_s = time.monotonic()
        try:
            is_stopped = False
            while not is_stopped:
                now_s = time.monotonic()
                is_full = now_s >= next_full_s
                self.look(is_full=is_full)
                if is_full:
                    next_full_s = next_tick_s(start_s, FULL_EVERY_S, now_s)
                self.cpu_s = time.thread_time()
                now_s = time.monotonic()
                is_stopped = running.acquire(timeout=next_tick_s(start_s, self._interval_s, now_s) - now_s)
            self.look(is_full=True)
            for series in self.series:
                series.close()
        except Exception as error:  # noqa: BLE001 - whatever stops the sampler, the program that it watches goes on
            message = f"sampling has stopped, and the program goes on: {type(error).__name__}: {error}"
            self._say(Diagnostic(SAMPLER_FAILED, message, unknown=("all that comes after",)))
