"""`launch` of ranks whose disk is slow: `python slow_launch.py launch ...`, with this folder in PYTHONPATH."""

from __future__ import annotations

import sys
from functools import partial

from dist_trainer.cli import launch
from dist_trainer.cli.main import main

if __name__ == "__main__":
    launch.run = partial(launch.run, module="slow_rank")
    sys.exit(main(sys.argv[1:]))
