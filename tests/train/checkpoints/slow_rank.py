"""A rank whose disk is slow: `python slow_rank.py train ...`, with a pause before each part of a save is written."""

from __future__ import annotations

import sys
import time
from typing import Any

from dist_trainer.checkpoints import data_file, index
from dist_trainer.cli.main import main

PAUSE_S = 0.02


def slowly(function: Any) -> Any:
    def paused(*arguments: Any, **named: Any) -> Any:
        time.sleep(PAUSE_S)
        return function(*arguments, **named)

    return paused


if __name__ == "__main__":
    data_file._write_all = slowly(data_file._write_all)
    index.write = slowly(index.write)
    sys.exit(main(sys.argv[1:]))
