"""What the second rank costs: the same global batch in one process of two threads, and on two ranks of one.

    .venv/bin/python docs/speed/second_rank.py [ROUNDS]

prints the median step of GPT-2 Small in bf16, 4 sequences of 256 tokens, for each of RUNS, interleaved in rounds whose
order alternates.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from dist_trainer.records import read_steps

NUM_STEPS, NUM_WARM_UP = 7, 2
# Ranks, and what is set beside the switches below.
RUNS = {
    "one process": (1, ["zero_optimization.stage=0"]),
    "two ranks, stage 0": (2, ["zero_optimization.stage=0"]),
    "two ranks, stage 1": (2, ["zero_optimization.stage=1"]),
    "two ranks, stage 2": (2, ["zero_optimization.stage=2"]),
    "two ranks, stage 2, reduce_scatter false": (
        2,
        ["zero_optimization.stage=2", "zero_optimization.reduce_scatter=false"],
    ),
}
PHASE = f'phases=[{{"name": "only", "sequence_length": 256, "steps": {NUM_STEPS}}}]'


def step_s(num_ranks: int, settings: list[str]) -> float:
    """The median step of a run of its own, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            sys.executable,
            "-m",
            "dist_trainer",
            "launch",
            "--nproc-per-node",
            str(num_ranks),
            "--config",
            "small",
        ]
        words += ["--ds", "fused", "--precision", "bf16", "--micro-batch", "1", "--accumulation", str(4 // num_ranks)]
        for setting in (PHASE, "model.dropout=0", "checkpoints.at_end=false", "evaluation.num_batches=0", *settings):
            words += ["--set", setting]
        subprocess.run([*words, "--run-dir", folder], check=True, stdout=subprocess.DEVNULL)
        return statistics.median(step.step_s for step in read_steps(Path(folder) / "records")[NUM_WARM_UP:])


def main(num_rounds: int) -> None:
    found: dict[str, list[float]] = {name: [] for name in RUNS}
    for number in range(num_rounds):
        for name in sorted(RUNS, reverse=number % 2 == 1):
            found[name].append(step_s(*RUNS[name]))
            print(f"round {number + 1}: {name}: {found[name][-1]:.2f} s", flush=True)
    for name, seconds in found.items():
        ratio = statistics.median(one / base for one, base in zip(seconds, found["one process"], strict=True))
        print(f"{name:42} {statistics.median(seconds):6.2f} s   x {ratio:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
