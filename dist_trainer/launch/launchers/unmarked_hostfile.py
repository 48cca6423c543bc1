"""Runs DeepSpeed's runner on a copy of the hostfile without its byte-order mark, which it would take for a part of the
first host's name: `python -m dist_trainer.launch.launchers.unmarked_hostfile MODULE --hostfile FILE ARGUMENT...`
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def unmarked(argv: Sequence[str]) -> list[str]:
    """The arguments with the hostfile replaced by a copy in memory (memfd), which disappears with this process."""
    words = list(argv)
    place = words.index("--hostfile") + 1
    copy = os.memfd_create("hostfile")
    os.write(copy, Path(words[place]).read_text(encoding="utf-8-sig").encode())
    words[place] = f"/proc/self/fd/{copy}"
    return words


if __name__ == "__main__":
    sys.argv = unmarked(sys.argv[1:])
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
