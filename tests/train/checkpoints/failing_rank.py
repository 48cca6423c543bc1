"""A rank whose disk fails at some steps: `python failing_rank.py train ...`, where RUN/checkpoints is a small mount.

Every second step a checkpoint is due. At the beginning of each such turn the first rank notes what lies in the folder,
as lines of RUN/seen.jsonl.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from dist_trainer.checkpoints import data_file, index
from dist_trainer.checkpoints.folder import LATEST_FILE, leftovers, saves
from dist_trainer.checkpoints.verify import damages
from dist_trainer.cli.main import main
from dist_trainer.train.checkpoints.turns import Turns

CHECKPOINTS = Path("run/checkpoints")
FILLER = CHECKPOINTS / "filler"
# The save of this step goes on until that one has been taken.
SLOW_STEP, FAST_STEP = 14, 17
is_fast = threading.Event()


def fill() -> None:
    facts = os.statvfs(CHECKPOINTS)
    FILLER.write_bytes(bytes(facts.f_bavail * facts.f_frsize))


def be_slow() -> None:
    assert is_fast.wait(300)


# Before a save begins, and when its folder is there and nothing written yet.
BEFORE = {
    4: fill,
    6: FILLER.unlink,
    8: FILLER.unlink,
    10: lambda: mount("-o", "remount,ro"),
    12: lambda: mount("-o", "remount,rw"),
}
DURING = {
    6: fill,
    SLOW_STEP: be_slow,
    18: lambda: subprocess.run(["umount", "--lazy", CHECKPOINTS], check=True),
}


def mount(*words: str) -> None:
    subprocess.run(["mount", *words, CHECKPOINTS], check=True)


def note(step: int) -> None:
    whole = saves(CHECKPOINTS)
    seen = {
        "step": step,
        "saves": [folder.name for folder in whole],
        "damages": [str(one) for folder in whole for one in damages(folder, index.read(folder))],
        "leftovers": [one.path.name for one in leftovers(CHECKPOINTS)],
        "latest": (CHECKPOINTS / LATEST_FILE).read_text() if whole else None,
    }
    with Path("run/seen.jsonl").open("a") as lines:
        lines.write(json.dumps(seen) + "\n")


class Disturbed:
    """In the place of methods of the first rank."""

    after_step = Turns.after_step
    write = staticmethod(data_file.write)


def after_step(turns: Turns, position: Any, step_s: float) -> None:
    step = position.step
    if step == FAST_STEP:
        is_fast.set()
    thread = turns._saver._thread
    if thread is not None and not SLOW_STEP < step < FAST_STEP:
        thread.join()
    if step % 2 == 0:
        note(step)
        if step in BEFORE:
            BEFORE[step]()
    Disturbed.after_step(turns, position, step_s)


def write(path: Path, *arguments: Any) -> Any:
    step = int(path.parent.name.split("-")[1].removesuffix(".saving"))
    if step in DURING:
        DURING[step]()
    return Disturbed.write(path, *arguments)


if __name__ == "__main__":
    if os.environ.get("RANK", "0") == "0":
        Turns.after_step = after_step  # type: ignore[method-assign]
        data_file.write = write
    sys.exit(main(sys.argv[1:]))
