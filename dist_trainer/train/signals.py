"""Signals that a rank hears, on a thread, because the main thread may be in a collective for minutes."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Collection

# What tells a rank to stop, whatever its run file says.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SignalThread:
    """From now on a thread calls `hear` as soon as one of STOP_SIGNALS comes, and `look` in between, again after as
    many seconds as that returns. To be made in the main thread.

    Signals that this process ignores (nohup) stay ignored. A forked process gets the former handlers back.
    """

    def __init__(self, hear: Callable[[signal.Signals], None], look: Callable[[], float]) -> None:
        self._hear, self._look = hear, look
        self._heard: dict[int, object] = {}
        self._read_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        # Python's C-level handler writes the signal's number to this pipe at once, whatever the main thread is doing.
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        self.hear_also(STOP_SIGNALS)
        os.register_at_fork(after_in_child=self._as_before)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def hear_also(self, numbers: Collection[signal.Signals]) -> None:
        """These signals too. For the main thread."""
        for number in numbers:
            former = signal.getsignal(number)
            if number not in self._heard and former is not signal.SIG_IGN:
                self._heard[number] = former
                signal.signal(number, lambda *_: None)

    def _as_before(self) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._heard.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _listen(self) -> None:
        wait_s = self._look()
        while True:
            if not select.select([self._read_fd], [], [], wait_s)[0]:
                wait_s = self._look()
                continue
            for number in os.read(self._read_fd, 1):
                if number in self._heard:
                    self._hear(signal.Signals(number))
            wait_s = self._look()
