"""A rank whose disk is slow: `python slow_rank.py train ...`, with a pause before each part of a save is written."""

from __future__ import annotations

import sys
import time
from typing import Any

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.uncached_file import UncachedFile
from dist_trainer.cli.main import main

PAUSE_S = 0.02


def slowly(function: Any) -> Any:
    def paused(*arguments: Any, **named: Any) -> Any:
        time.sleep(PAUSE_S)
        return function(*arguments, **named)

    return paused


if __name__ == "__main__":
    UncachedFile.write = slowly(UncachedFile.write)  # type: ignore[method-assign]
    index.write = slowly(index.write)
    sys.exit(main(sys.argv[1:]))
