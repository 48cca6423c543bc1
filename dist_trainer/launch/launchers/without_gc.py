"""A launcher without garbage collection: `python -m dist_trainer.launch.launchers.without_gc MODULE ARGUMENT...`

It finds nothing in the launcher's imports of torch and DeepSpeed, and takes a fifth of their time; afterwards the
launcher only waits. When `launch` is killed, what DeepSpeed's runner has started on this host ends with it.
"""

from __future__ import annotations

import gc
import os
import runpy
import signal
import sys

_PARENT_PID = os.getppid()


def _end(number: int, _: object) -> None:
    """As without a handler; but what is left alone ends its whole process group, which is the launcher's own."""
    signal.signal(number, signal.SIG_DFL)
    if os.getppid() != _PARENT_PID and os.getpgrp() == os.getpid():
        os.killpg(0, number)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    # The kernel sends it when `launch` has ended. Over hosts the runner brings a handler of its own.
    signal.signal(signal.SIGTERM, _end)
    gc.disable()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
