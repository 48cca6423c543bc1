"""Runs one command as if it had been started directly: with our stdin and stdout, our signals, its exit status."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from dist_trainer.errors import UserError

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# `si_code` of signals from the kernel: a key typed at the terminal, which reaches the whole foreground process group.
_SI_KERNEL = 0x80
_LONG_S = 3600.0


def run_transparently(argv: Sequence[str], environ: Mapping[str, str], started: Callable[[int], None]) -> int:
    """Runs the command to its end; returns its exit status, or 128 + N when signal N ended it. Main thread only.

    `started` is called with the command's process id. At a terminal the command shares this process's group, so that
    Ctrl-C, Ctrl-Z and reading from the terminal work as usual. Elsewhere it gets a process group of its own, and each
    signal to this process is passed on once to that whole group. Processes that the command leaves behind go on.

    Raises UserError when the command cannot be started.
    """
    passed_on = {number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN}
    # Signals are blocked and waited for instead of handled, so that none interrupts this function half-way.
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, passed_on | {signal.SIGCHLD})
    try:
        has_own_group = not _is_in_foreground()

        def in_child() -> None:
            if has_own_group:
                os.setpgid(0, 0)
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)

        try:
            command = subprocess.Popen(list(argv), env=dict(environ), preexec_fn=in_child)
        except OSError as error:
            raise UserError("the command cannot be started", found=f"{argv[0]} ({error.strerror})") from error
        started(command.pid)
        while command.poll() is None:
            received = signal.sigtimedwait(passed_on | {signal.SIGCHLD}, _LONG_S)
            if received is None or received.si_signo == signal.SIGCHLD:
                continue
            with suppress(ProcessLookupError):
                if has_own_group:
                    os.killpg(command.pid, received.si_signo)
                elif received.si_code != _SI_KERNEL:
                    os.kill(command.pid, received.si_signo)
        # What is still pending came with the command's end (Ctrl-C) and must not end this process once it is unblocked.
        while signal.sigtimedwait(passed_on, 0) is not None:
            pass
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
    return 128 - command.returncode if command.returncode < 0 else command.returncode


def _is_in_foreground() -> bool:
    """Whether this process is in the foreground group of a terminal, to which the terminal's keys send signals."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
