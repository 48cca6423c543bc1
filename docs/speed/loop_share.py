"""The time that a run's loop takes beside its steps (records, memory, the terminal's line), a step, from its records.

.venv/bin/python docs/speed/loop_share.py RUN_DIR
"""

from __future__ import annotations

import statistics
import sys
from itertools import pairwise
from pathlib import Path

from dist_trainer.records import read_steps


def main(run_dir: Path) -> None:
    steps = read_steps(run_dir / "records")
    beside_s = statistics.median(after.time_s - before.time_s - after.step_s for before, after in pairwise(steps))
    step_s = statistics.median(step.step_s for step in steps)
    print(f"{1e3 * beside_s:.2f} ms beside each step of {1e3 * step_s:.1f} ms: {beside_s / step_s:.2%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
