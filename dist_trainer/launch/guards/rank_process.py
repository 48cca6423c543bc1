"""The process of one rank: a new program, or a fork of its guard that continues as the rank.

A fork has already imported what its guard imported, so that a guard costs the rank no start-up time. It requires the
same Python and folder, and an environment that differs only in variables that nothing has read yet.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

from dist_trainer.blackbox import BLACKBOX_FD
from dist_trainer.cause import CAUSE_FD
from dist_trainer.cluster.environments import LAUNCH_ID, LAUNCH_PROCESS
from dist_trainer.errors import EXIT_FAILURE
from dist_trainer.launch.processes import end_with_parent, show_as

# Read only by torch, CUDA, gloo, NCCL and our own later code, none of which has run in a guard.
_READ_LATE = frozenset(
    {
        CAUSE_FD,
        BLACKBOX_FD,
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        LAUNCH_ID,
        LAUNCH_PROCESS,
        *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"),
    }
)


class BecomeRank(BaseException):
    """Raised in the fork to unwind the guard's stack; `run` then continues as the rank."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self._module, self._arguments = module, arguments

    def run(self) -> None:
        sys.argv = [self._module, *self._arguments]
        runpy.run_module(self._module, run_name="__main__", alter_sys=True)


class Fork:
    """A forked rank, with as much of subprocess.Popen's interface as a guard needs."""

    def __init__(self, pid: int, stdout: IO[bytes] | None, stderr: IO[bytes] | None) -> None:
        self.pid, self.stdout, self.stderr = pid, stdout, stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


RankProcess = subprocess.Popen[bytes] | Fork


def start_rank(
    argv: Sequence[str],
    cwd: str,
    environ: Mapping[str, str],
    *,
    is_captured: bool,
    let_go: Callable[[], None],
    descriptors: Mapping[str, int],
) -> RankProcess:
    """Starts the rank in a session of its own; it is killed when this process ends. This process must have no threads.

    `let_go` is called in a fork to close what belongs to the guard. `descriptors`: open files that the rank gets, by
    the variables that tell it their numbers, see `cause` and `blackbox`. Raises OSError if the folder or the program
    does not exist.
    """
    environ = {**environ, **{name: str(descriptor) for name, descriptor in descriptors.items()}}
    kept = sorted(descriptors.values())
    if list(argv[:2]) == [sys.executable, "-m"] and str(Path.cwd()) == cwd and _differs_late(environ):
        return _fork(argv, environ, is_captured=is_captured, let_go=let_go, kept=kept)
    parent_pid = os.getpid()

    def in_child() -> None:
        signal.set_wakeup_fd(-1)
        end_with_parent(parent_pid, signal.SIGKILL)

    os.chdir(cwd)
    return subprocess.Popen(
        argv,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if is_captured else None,
        stderr=subprocess.PIPE if is_captured else None,
        start_new_session=True,
        preexec_fn=in_child,
        pass_fds=kept,
    )


def _differs_late(environ: Mapping[str, str]) -> bool:
    names = environ.keys() | os.environ.keys()
    return all(name in _READ_LATE or environ.get(name) == os.environ.get(name) for name in names)


def _fork(
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    is_captured: bool,
    let_go: Callable[[], None],
    kept: Sequence[int],
) -> Fork:
    pipes = [os.pipe() for _ in range(2)] if is_captured else []
    parent_pid = os.getpid()
    # No signal may reach the fork while it still has the guard's handlers.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid == 0:
        _go_on_as_rank(argv, environ, [write for _, write in pipes], parent_pid, let_go, mask, kept)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for _, write in pipes:
        os.close(write)
    stdout, stderr = (os.fdopen(read, "rb", buffering=0) for read, _ in pipes) if is_captured else (None, None)
    return Fork(pid, stdout, stderr)


def _go_on_as_rank(
    argv: Sequence[str],
    environ: Mapping[str, str],
    outputs: Sequence[int],
    parent_pid: int,
    let_go: Callable[[], None],
    mask: set[int] | set[signal.Signals],
    kept: Sequence[int],
) -> NoReturn:
    try:
        end_with_parent(parent_pid, signal.SIGKILL)
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        let_go()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for fd, output in enumerate(outputs, start=1):
            os.dup2(output, fd)
        first = 3
        for descriptor in (*kept, os.sysconf("SC_OPEN_MAX")):
            os.closerange(first, descriptor)
            first = descriptor + 1
        os.environ.clear()
        os.environ.update(environ)
        show_as(["python", *argv[1:]])
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    except BaseException:  # noqa: BLE001 - nothing of this process may go on as a second guard
        os._exit(EXIT_FAILURE)
    raise BecomeRank(argv[2], argv[3:])
