"""Runs a launcher without garbage collection: `python -m dist_trainer.launch.launchers.without_gc MODULE ARGUMENT...`

While torch and DeepSpeed are imported the collector finds nothing to free and takes a fifth of the time; after that the
launcher only waits. If `launch` is killed, what DeepSpeed's runner has started on this host is ended too.
"""

from __future__ import annotations

import gc
import os
import runpy
import signal
import sys

_PARENT_PID = os.getppid()


def _end(number: int, _: object) -> None:
    """The default action of the signal; if our parent has ended, first for our whole process group (the launcher's)."""
    signal.signal(number, signal.SIG_DFL)
    if os.getppid() != _PARENT_PID and os.getpgrp() == os.getpid():
        os.killpg(0, number)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    # The kernel sends SIGTERM when `launch` has ended. Over several hosts DeepSpeed's runner installs its own handler.
    signal.signal(signal.SIGTERM, _end)
    gc.disable()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
