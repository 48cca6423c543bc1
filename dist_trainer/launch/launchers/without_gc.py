"""A launcher without garbage collection: `python -m dist_trainer.launch.launchers.without_gc MODULE ARGUMENT...`

It finds nothing in the launcher's imports of torch and DeepSpeed, and takes a fifth of their time; afterwards the
launcher only waits.
"""

from __future__ import annotations

import gc
import runpy
import sys

if __name__ == "__main__":
    gc.disable()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
