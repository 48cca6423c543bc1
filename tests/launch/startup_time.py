"""Seconds from the command to the first step of 2 ranks on this host: each launcher bare, and under `launch`.

    PYTHONPATH=tests python tests/launch/startup_time.py [PAIRS] [LAUNCHER...]

Pairs are interleaved; medians, and the median of the pairs' ratios. srun is measured in a SLURM of its own (root).
"""

from __future__ import annotations

import socket
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from ranks import BRISK, bin_environment, mini_config, run

import slurm

LAUNCHERS = ("torchrun", "deepspeed", "mpirun", "srun")
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


def seconds_to_first_step(launcher: str, folder: Path, name: str, environ: dict[str, str], *, bare: bool) -> float:
    run_dir = folder / name
    words = ["--config", str(mini_config(folder)), "--run-dir", str(run_dir), *BRISK, "--max-steps", "1"]
    began_s = time.time()
    ended = run(command(launcher, words, bare=bare), cwd=folder, environ=environ)
    assert ended.status == 0, ended.output
    # The file is written to at the first step, and no more.
    return (run_dir / "records" / "steps.jsonl").stat().st_mtime - began_s


def main(num_pairs: int, launchers: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        environ = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **bin_environment()}
        if "srun" in launchers:
            environ["SLURM_CONF"] = stack.enter_context(
                slurm.one_host_slurm(folder / "slurm", node=socket.gethostname())
            )["SLURM_CONF"]
        print("| launcher | bare | under launch | ratio |\n|---|---:|---:|---:|")
        for launcher in launchers:
            pairs = []
            for number in range(num_pairs):
                order = (True, False) if number % 2 else (False, True)
                taken = {
                    bare: seconds_to_first_step(launcher, folder, f"{launcher}-{number}-{bare}", environ, bare=bare)
                    for bare in order
                }
                pairs.append((taken[True], taken[False]))
            bare_s, ours_s = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(ours / bare for bare, ours in pairs)
            print(f"| {launcher} | {bare_s:.1f} s | {ours_s:.1f} s | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, sys.argv[2:] or list(LAUNCHERS))
