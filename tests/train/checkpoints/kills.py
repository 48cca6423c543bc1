"""Kills a run at random moments until it is through, and holds its losses against those of an undisturbed one.

    python tests/train/checkpoints/kills.py [KILLS] [SEED]

Two ranks save every other step, on a disk that is slow on purpose. SIGKILL hits one rank or both, at a random moment
from the first import to the end; then the run is started again in its folder. After so many kills it is left alone.
Prints a line for each kill, and a table. Status 1 if a loss differs, or if a start finds no checkpoint that is whole.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from ranks import MINI, bin_environment

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.folder import saves
from dist_trainer.checkpoints.verify import damages
from dist_trainer.records import read_steps

SLOW = str(Path(__file__).with_name("slow_rank.py"))
SWITCHES = ("--set", "checkpoints.every_steps=2", "--set", "checkpoints.keep_newest=3", "--ds", "zero2")
NUM_STEPS = 20
# What a survivor of its peer gets to end by itself.
GRACE_S = 15.0


def start(folder: Path, run_dir: Path) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    (folder / "mini.yaml").write_text(MINI)
    words = ["train", "--config", str(folder / "mini.yaml"), "--run-dir", str(run_dir), *SWITCHES]
    ranks = []
    for rank in ("0", "1"):
        environ = bin_environment({"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
        environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        out = (folder / f"out-{rank}").open("ab")
        command = [sys.executable, SLOW, *words]
        ranks.append(subprocess.Popen(command, cwd=folder, env=environ, stdout=out, stderr=out))
        out.close()
    return ranks


def end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Waits for all, and ends those that do not end by themselves."""
    limit_s = time.monotonic() + GRACE_S
    for rank in ranks:
        try:
            rank.wait(max(0.1, limit_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def losses(run_dir: Path) -> list[float]:
    return [step.loss for step in read_steps(run_dir / "records")]


def undisturbed(folder: Path) -> tuple[list[float], float]:
    """The losses of a run that nobody kills, and how long it took."""
    began_s = time.monotonic()
    ranks = start(folder, folder / "undisturbed")
    if any([rank.wait() for rank in ranks]):  # noqa: C419 - each of them is waited for
        sys.exit((folder / "out-0").read_text())
    return losses(folder / "undisturbed"), time.monotonic() - began_s


def half_there(run_dir: Path) -> list[str]:
    """What is wrong with checkpoints that have their names; nothing may be."""
    found = []
    for folder in saves(run_dir / "checkpoints"):
        found += [str(damage) for damage in damages(folder, index.read(folder))]
    return found


def kill(folder: Path, run_dir: Path, random_: random.Random, took_s: float) -> tuple[str, int]:
    """Starts the run, kills it, and returns whom it hit and the last step before that."""
    ranks = start(folder, run_dir)
    time.sleep(random_.uniform(0.0, took_s))
    whom = random_.choice(("rank 0", "rank 1", "both"))
    for rank in ranks if whom == "both" else [ranks[int(whom[-1])]]:
        if rank.poll() is None:
            os.kill(rank.pid, signal.SIGKILL)
    end(ranks)
    steps = losses(run_dir) if (run_dir / "records" / "steps.jsonl").exists() else []
    return whom, len(steps)


def main(num_kills: int, seed: int) -> int:
    random_ = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        expected, took_s = undisturbed(folder)
        told: Counter[str] = Counter()
        number = 0
        while number < num_kills:
            run_dir = folder / f"run-{number}"
            while number < num_kills:
                whom, step = kill(folder, run_dir, random_, took_s)
                number += 1
                damaged = half_there(run_dir)
                told[whom] += 1
                print(f"kill {number}: {whom} after step {step}, {len(damaged)} half checkpoints", flush=True)
                if damaged:
                    print(*damaged, sep="\n")
                    return 1
                if step == NUM_STEPS:
                    break
            end_of = start(folder, run_dir)
            for rank in end_of:
                rank.wait()
            if losses(run_dir) != expected:
                print(f"the losses of {run_dir} differ:\n{losses(run_dir)}\n{expected}")
                print((folder / "out-0").read_text()[-3000:])
                return 1
        print("\n| killed | times | losses that differ | half checkpoints |\n|---|---:|---:|---:|")
        for whom, times in sorted(told.items()):
            print(f"| {whom} | {times} | 0 | 0 |")
    return 0


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(numbers + [200, 0][len(numbers) :])))
