"""Runs one launcher to its end: passes signals to all its processes, returns its status, leaves nothing running."""

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

# For a program of which it is not known how long it takes to save.
GRACE_S = 20.0
# After a failure the ranks are ended at once, and the launcher gets so long to notice it.
FAILURE_GRACE_S = 5.0
_STRAGGLER_GRACE_S = 3.0
_POLL_S = 0.05
_LONG_S = 3600.0
_LOOK_S = 0.2
# The time that a launcher needs to end by itself after its last rank.
_LAUNCHER_GRACE_S = 4.0
_TERM_GRACE_S = 2.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Ending:
    """How a command ended. `status`: its exit status, or 128 + N if signal N ended it. `stopped_by`: the signal to this
    process that made us stop the command.
    """

    status: int
    stopped_by: signal.Signals | None


class Guards(Protocol):
    """What watches the ranks on all hosts and can end them: `coordinator.Coordinator`."""

    @property
    def trouble(self) -> object | None: ...

    @property
    def has_guards(self) -> bool: ...

    def pass_on(self, number: signal.Signals) -> bool: ...

    def stop(self) -> float: ...


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
    """Runs the command with exactly this environment until it and everything that it started have ended.

    SIGINT, SIGTERM and SIGHUP to this process are sent to the command's whole process group as SIGTERM; what still runs
    `grace_s` later, or at a second signal, is killed. A command stopped so returns 128 + the signal, unless it ends
    with 0. Processes that the command leaves running are ended, and turn status 0 into 1. For the main thread only.

    If `guards` are connected, they end the ranks instead, and the command gets the time that they give to the ranks to
    end by itself; it also gets some time (FAILURE_GRACE_S and a little more) once the guards know of trouble. SIGUSR1
    and SIGUSR2 they pass on to the ranks; without guards these too stop the command. The command's output goes to
    `output` and `errors`, by default to this process's own streams. `meanwhile` is called as soon as the command is
    started, with the original signal mask; if it raises, the command is killed.
    """
    ours = (*_STOP_SIGNALS, *_PASSED_ON)
    stop_signals = {number for number in ours if signal.getsignal(number) is not signal.SIG_IGN}
    not_ours = {process.pid for process in list_descendants(os.getpid())}
    # Signals are blocked and waited for instead of handled, so that none interrupts this function half-way.
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
        # A stop signal that is still pending has had its effect: it must not end this process once it is unblocked.
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
    """Waits for the launcher's end. Returns the stop signal, if one came; it and its processes have had their time."""
    awaited = stop_signals | {signal.SIGCHLD}
    while launcher.poll() is None:
        received = signal.sigtimedwait(awaited, _LONG_S if guards is None else _LOOK_S)
        if received is not None and received.si_signo != signal.SIGCHLD:
            number = signal.Signals(received.si_signo)
            if number in _PASSED_ON and guards is not None and guards.pass_on(number):
                continue
            if guards is not None and guards.has_guards:
                grace_s = guards.stop() + _LAUNCHER_GRACE_S
            else:
                _signal_group(launcher, signal.SIGTERM)
            _give_time(launcher, stop_signals, not_ours, grace_s)
            return number
        if guards is not None and guards.trouble is not None:
            if not _give_time(launcher, stop_signals, not_ours, FAILURE_GRACE_S + _LAUNCHER_GRACE_S):
                _signal_group(launcher, signal.SIGTERM)
                _give_time(launcher, stop_signals, not_ours, _TERM_GRACE_S)
            return None
    return None


def _give_time(
    launcher: subprocess.Popen[bytes], stop_signals: set[signal.Signals], not_ours: Collection[int], limit_s: float
) -> bool:
    """Waits until everything has ended, for at most `limit_s` and until a stop signal. True if all has ended."""
    deadline_s = time.monotonic() + limit_s
    while _remaining(launcher, not_ours):
        if time.monotonic() >= deadline_s or signal.sigtimedwait(stop_signals, _POLL_S) is not None:
            return False
    return True


def _signal_group(launcher: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(launcher.pid, number)


def _end_stragglers(launcher: subprocess.Popen[bytes], not_ours: Collection[int]) -> bool:
    """Waits for what the launcher left behind, then sends it SIGTERM. True if all of it had ended by itself."""
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
    """The processes of this launch, the launcher included, that have not ended. Reaps adopted ones that have."""
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
