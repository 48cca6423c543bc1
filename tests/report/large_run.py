"""Writes a run's folder as large as they come, to time the report on it:

python tests/report/large_run.py DIR [--ranks 64] [--steps 10000] [--samples 50000]
python tests/report/large_run.py DIR --ranks 8192 --gpus-a-host 8 --samples 2000
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from plans import make_plan
from run_folders import make_gpu_run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--gpus-a-host", type=int, help="of a run with a monitor a host")
    args = parser.parse_args()
    peaks = [2_000_000_000 + 5_000_000 * (7 * rank % 64) + rank for rank in range(args.ranks)]
    plan = make_plan(allocated=1_600_000_000, reserved=1_800_000_000, used=2_300_000_000, world_size=args.ranks)
    make_gpu_run(
        args.folder, peaks, num_steps=args.steps, num_samples=args.samples, plan=plan, num_gpus_a_host=args.gpus_a_host
    )


if __name__ == "__main__":
    main()
