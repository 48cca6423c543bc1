"""Runs one launcher to its end: signals reach all its processes, its status is told truly, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Protocol

from dist_trainer.cluster.process_table import list_descendants
from dist_trainer.errors import EXIT_FAILURE
from dist_trainer.launch.processes import adopt_orphans, end_with_parent

GRACE_S = 20.0
# After a failure ranks that wait in a collective have nothing to save.
FAILURE_GRACE_S = 5.0
_STRAGGLER_GRACE_S = 3.0
_POLL_S = 0.05
_LONG_S = 3600.0
_LOOK_S = 0.2
# What a launcher needs to end by itself after its last rank.
_LAUNCHER_GRACE_S = 4.0
_TERM_GRACE_S = 2.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit status, 128 + N when signal N ended it, and the signal that made us stop it."""

    status: int
    stopped_by: signal.Signals | None


class Guards(Protocol):
    """What watches the ranks on all hosts, and can end them. See `coordinator.Coordinator`."""

    @property
    def trouble(self) -> object | None: ...

    @property
    def has_guards(self) -> bool: ...

    def stop(self, grace_s: float) -> None: ...


def supervise(
    argv: tuple[str, ...],
    environ: Mapping[str, str],
    *,
    grace_s: float = GRACE_S,
    guards: Guards | None = None,
    output: IO[bytes] | None = None,
    errors: IO[bytes] | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> Ending:
    """Runs the command with exactly this environment, to its end and that of all it started.

    SIGINT, SIGTERM and SIGHUP to this process reach the command's whole process group as SIGTERM; what is not
    gone `grace_s` later, or at a second signal, is killed. A command so stopped gives 128 + the signal, unless it
    ends with 0. What the command leaves running is ended, and then status 0 becomes 1. For the main thread only.

    Where `guards` are connected they end the ranks instead, and the command is left to end by itself within the same
    time; so it is, within FAILURE_GRACE_S and a little more, once they know of trouble. What the command prints goes
    to `output` and `errors`, else to this process's own streams. `meanwhile` is called as soon as the command is on its
    way, with the signals as they were; when it raises, the command is killed.
    """
    stop_signals = {number for number in _STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    not_ours = {process.pid for process in list_descendants(os.getpid())}
    # Blocked and waited for instead of handled, so that nothing here is interrupted half-way.
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals | {signal.SIGCHLD})
    adopt_orphans(True)
    try:
        launcher = _start(argv, environ, old_mask, output, errors)
        try:
            if meanwhile is not None:
                with _mask(old_mask):
                    meanwhile()
            stopped_by = _wait(launcher, stop_signals, not_ours, grace_s, guards)
            is_known = guards is not None and guards.trouble is not None
            is_left_over = stopped_by is None and not is_known and not _end_stragglers(launcher, not_ours)
        finally:
            _kill_the_rest(launcher, not_ours)
    finally:
        adopt_orphans(False)
        # A stop signal that came again meanwhile has had its effect.
        while signal.sigtimedwait(stop_signals, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
    returncode = launcher.wait()
    status = 128 - returncode if returncode < 0 else returncode
    if stopped_by is not None:
        return Ending(128 + stopped_by if status else status, stopped_by)
    if is_left_over and guards is None:
        print("The launcher ended before the ranks did; the ranks were ended.", file=sys.stderr)
        return Ending(status or EXIT_FAILURE, None)
    return Ending(status, None)


@contextmanager
def _mask(mask: Collection[int | signal.Signals]) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(
    argv: tuple[str, ...],
    environ: Mapping[str, str],
    mask: Collection[int | signal.Signals],
    output: IO[bytes] | None,
    errors: IO[bytes] | None,
) -> subprocess.Popen[bytes]:
    parent_pid = os.getpid()

    def in_child() -> None:
        end_with_parent(parent_pid)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return subprocess.Popen(
        argv,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        start_new_session=True,
        preexec_fn=in_child,
    )


def _wait(
    launcher: subprocess.Popen[bytes],
    stop_signals: set[signal.Signals],
    not_ours: Collection[int],
    grace_s: float,
    guards: Guards | None,
) -> signal.Signals | None:
    """Until the launcher has ended, or until it and all its processes had their time after a signal: that signal."""
    awaited = stop_signals | {signal.SIGCHLD}
    while launcher.poll() is None:
        received = signal.sigtimedwait(awaited, _LONG_S if guards is None else _LOOK_S)
        if received is not None and received.si_signo != signal.SIGCHLD:
            if guards is not None and guards.has_guards:
                guards.stop(grace_s)
                grace_s += _LAUNCHER_GRACE_S
            else:
                _signal_group(launcher, signal.SIGTERM)
            _give_time(launcher, stop_signals, not_ours, grace_s)
            return signal.Signals(received.si_signo)
        if guards is not None and guards.trouble is not None:
            if not _give_time(launcher, stop_signals, not_ours, FAILURE_GRACE_S + _LAUNCHER_GRACE_S):
                _signal_group(launcher, signal.SIGTERM)
                _give_time(launcher, stop_signals, not_ours, _TERM_GRACE_S)
            return None
    return None


def _give_time(
    launcher: subprocess.Popen[bytes], stop_signals: set[signal.Signals], not_ours: Collection[int], limit_s: float
) -> bool:
    """Waits for the end of everything, at most so long, and not beyond a stop signal: whether all has ended."""
    deadline_s = time.monotonic() + limit_s
    while _remaining(launcher, not_ours):
        if time.monotonic() >= deadline_s or signal.sigtimedwait(stop_signals, _POLL_S) is not None:
            return False
    return True


def _signal_group(launcher: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(launcher.pid, number)


def _end_stragglers(launcher: subprocess.Popen[bytes], not_ours: Collection[int]) -> bool:
    """Gives what the launcher left behind time to end by itself, and says whether all of it did; else SIGTERM."""
    if _wait_until(lambda: not _remaining(launcher, not_ours), _STRAGGLER_GRACE_S):
        return True
    for pid in _remaining(launcher, not_ours):
        _send(pid, signal.SIGTERM)
    _wait_until(lambda: not _remaining(launcher, not_ours), _STRAGGLER_GRACE_S)
    return False


def _kill_the_rest(launcher: subprocess.Popen[bytes], not_ours: Collection[int]) -> None:
    while remaining := _remaining(launcher, not_ours):
        for pid in remaining:
            _send(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _remaining(launcher: subprocess.Popen[bytes], not_ours: Collection[int]) -> list[int]:
    """The processes of this launch, itself among them, that have not ended. Clears away adopted ones that have."""
    launcher.poll()
    running = []
    for process in list_descendants(os.getpid()):
        if process.pid in not_ours:
            continue
        if not process.has_ended:
            running.append(process.pid)
        elif process.parent_pid == os.getpid() and process.pid != launcher.pid:
            with suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
    return running


def _wait_until(is_so: Callable[[], bool], limit_s: float) -> bool:
    deadline_s = time.monotonic() + limit_s
    while not is_so():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
