"""Signals that end a rank, handled on a thread, because the main thread may be in a collective for minutes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_on_signals(end: Callable[[signal.Signals], None]) -> None:
    """Makes a thread call `end` as soon as SIGINT, SIGTERM or SIGHUP comes. To be called in the main thread.

    Signals that this process ignores (nohup) stay ignored. A forked process, such as a loader's worker, gets the former
    handlers back.
    """
    heard = {number: signal.getsignal(number) for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN}
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    # Python's C-level handler writes the signal's number to this pipe at once, whatever the main thread is doing.
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    for number in heard:
        signal.signal(number, lambda *_: None)

    def as_before() -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in heard.items():
            signal.signal(number, handler)

    def listen() -> None:
        while True:
            for number in os.read(read_fd, 1):
                if number in heard:
                    end(signal.Signals(number))

    os.register_at_fork(after_in_child=as_before)
    threading.Thread(target=listen, name="signals", daemon=True).start()
