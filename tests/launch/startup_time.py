"""Seconds from the command to the first step of 2 ranks on this host: each launcher bare, and under `launch`.

    PYTHONPATH=tests python tests/launch/startup_time.py [PAIRS] [LAUNCHER...]

Pairs are interleaved. On stdout medians and the median of the pairs' differences, on stderr the medians of each stage
of rank 0 (docs/report.md). srun is measured in a SLURM of its own (root).
"""

from __future__ import annotations

import itertools
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from ranks import bin_environment, run

import slurm
from dist_trainer.records import START_ENDED, StageRecord, read_records, start_file

LAUNCHERS = ("torchrun", "deepspeed", "mpirun", "srun")
BEFORE = "before"
LAUNCH_SH = Path(__file__).parents[2] / "launch.sh"
TRAIN = ("-m", "dist_trainer", "train")


def command(launcher: str, words: list[str], *, bare: bool) -> list[str]:
    allocated = ["salloc", "--quiet", "--ntasks=2"] if launcher == "srun" else []
    if not bare:
        where = [] if launcher == "srun" else ["--nproc-per-node", "2"]
        return [*allocated, str(LAUNCH_SH), "--launcher", launcher, *where, *words]
    return {
        "torchrun": ["torchrun", "--nproc-per-node=2", *TRAIN, *words],
        "deepspeed": ["deepspeed", "--num_accelerators", "2", "--module", "dist_trainer", "train", *words],
        "mpirun": ["mpirun", "-n", "2", "--oversubscribe", "--bind-to", "none", sys.executable, *TRAIN, *words],
        "srun": [*allocated, "srun", sys.executable, *TRAIN, *words],
    }[launcher]


def seconds_by_stage(
    launcher: str, folder: Path, name: str, environ: dict[str, str], *, bare: bool
) -> dict[str, float]:
    """Of rank 0, from the command to the end of the first step; BEFORE is until its process, or the fork, began."""
    run_dir = folder / name
    words = ["--config", "tiny", "--run-dir", str(run_dir), "--max-steps", "1"]
    began_s = time.monotonic()
    ended = run(command(launcher, words, bare=bare), cwd=folder, environ=environ)
    assert ended.status == 0, ended.output
    records = list(read_records(run_dir / "records" / start_file(0), StageRecord))
    own = records[[one.stage for one in records].index("spawn") :]
    assert own[-1].stage == START_ENDED
    taken = {BEFORE: own[0].monotonic_s - began_s}
    for one, after in itertools.pairwise(own):
        taken[one.stage] = taken.get(one.stage, 0.0) + after.monotonic_s - one.monotonic_s
    return taken


def median(values: Iterable[float]) -> str:
    return f"{statistics.median(values):.2f}"


def main(num_pairs: int, launchers: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        environ = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **bin_environment()}
        if "srun" in launchers:
            environ["SLURM_CONF"] = stack.enter_context(
                slurm.one_host_slurm(folder / "slurm", node=socket.gethostname())
            )["SLURM_CONF"]
        print("| launcher | bare | under launch | difference |\n|---|---:|---:|---:|")
        for launcher in launchers:
            pairs = []
            # The first pair warms caches up (the plan's trace, the file system's) and does not count.
            for number in range(num_pairs + 1):
                order = (True, False) if number % 2 else (False, True)
                taken = {
                    bare: seconds_by_stage(launcher, folder, f"{launcher}-{number}-{bare}", environ, bare=bare)
                    for bare in order
                }
                pairs.append((taken[True], taken[False]))
            del pairs[0]
            totals = [(sum(bare.values()), sum(ours.values())) for bare, ours in pairs]
            bare_s, ours_s = (median(column) for column in zip(*totals, strict=True))
            more_s = statistics.median(ours - bare for bare, ours in totals)
            print(f"| {launcher} | {bare_s} s | {ours_s} s | {more_s:+.2f} s |", flush=True)
            for name, runs in zip(("bare", "launch"), zip(*pairs, strict=True), strict=True):
                medians = (f"{stage} {median(run[stage] for run in runs)}" for stage in runs[0])
                print(f"{launcher}, {name}: {', '.join(medians)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7, sys.argv[2:] or list(LAUNCHERS))
