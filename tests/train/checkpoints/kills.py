"""Kills a run at random moments until it is through, and holds its losses against those of an undisturbed one.

    python tests/train/checkpoints/kills.py [KILLS] [SEED]

Two ranks save every other step, on a disk that is slow on purpose. SIGKILL hits one rank, both, or the `launch` that
started them, at a random moment from the first import to the end; when all processes are gone, the run is started
again in its folder. After so many kills it is left alone. Prints a line for each kill, and a table. Status 1 if a loss
differs, if a checkpoint that has its name is not whole, or if processes of a killed `launch` stay.
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
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))
from ranks import MINI, bin_environment

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.folder import leftovers, saves
from dist_trainer.checkpoints.verify import damages
from dist_trainer.records import read_steps

SLOW = Path(__file__).with_name("slow_rank.py")
SLOW_LAUNCH = Path(__file__).with_name("slow_launch.py")
SWITCHES = ("--set", "checkpoints.every_steps=2", "--set", "checkpoints.keep_newest=3", "--ds", "zero2")
NUM_STEPS = 20
# What a survivor of its peer gets to end by itself.
GRACE_S = 15.0
# What guards wait until they take `launch` for lost, and launchers for what they started, on a machine that is busy.
GONE_WITHIN_S = 60.0
WHOM = ("rank 0", "rank 1", "both ranks", "launch")


def words_of(folder: Path, run_dir: Path) -> list[str]:
    (folder / "mini.yaml").write_text(MINI)
    return ["--config", str(folder / "mini.yaml"), "--run-dir", str(run_dir), *SWITCHES]


def start(folder: Path, run_dir: Path) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = ["train", *words_of(folder, run_dir)]
    ranks = []
    for rank in ("0", "1"):
        environ = bin_environment({"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
        environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        out = (folder / f"out-{rank}").open("ab")
        command = [sys.executable, str(SLOW), *words]
        ranks.append(subprocess.Popen(command, cwd=folder, env=environ, stdout=out, stderr=out))
        out.close()
    return ranks


def start_launch(folder: Path, run_dir: Path, mark: str) -> subprocess.Popen[bytes]:
    """`launch`, which starts the ranks; all processes below it have the mark among their variables."""
    environ = bin_environment({"MARK": mark, "PYTHONPATH": str(SLOW.parent)})
    words = ["launch", "--launcher", "torchrun", "--nproc-per-node", "2", *words_of(folder, run_dir)]
    with (folder / "out-launch").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, str(SLOW_LAUNCH), *words], cwd=folder, env=environ, stdout=out, stderr=out
        )


def marked(mark: str) -> list[int]:
    """The processes that have the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            environ = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if f"MARK={mark}".encode() in environ and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (OSError, psutil.NoSuchProcess):
            continue
    return found


def all_gone(mark: str) -> bool:
    """Waits for what a killed `launch` has left to end by itself; kills what does not."""
    limit_s = time.monotonic() + GONE_WITHIN_S
    while left := marked(mark):
        if time.monotonic() > limit_s:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.1)
    return True


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


def undisturbed_launch(folder: Path) -> tuple[list[float], float]:
    """The same of a run under `launch`."""
    began_s = time.monotonic()
    if start_launch(folder, folder / "launched", uuid.uuid4().hex).wait():
        sys.exit((folder / "out-launch").read_text())
    return losses(folder / "launched"), time.monotonic() - began_s


def half_there(run_dir: Path) -> list[str]:
    """What is wrong with checkpoints that have their names; nothing may be."""
    found = []
    for folder in saves(run_dir / "checkpoints"):
        found += [str(damage) for damage in damages(folder, index.read(folder))]
    return found


def has_cut_off(run_dir: Path) -> bool:
    """Whether the kill has left a save that is not whole."""
    checkpoints_dir = run_dir / "checkpoints"
    return checkpoints_dir.is_dir() and any(left.what == "saving" for left in leftovers(checkpoints_dir))


def kill_ranks(folder: Path, run_dir: Path, whom: str, after_s: float) -> None:
    ranks = start(folder, run_dir)
    time.sleep(after_s)
    for rank in ranks if whom == "both ranks" else [ranks[int(whom[-1])]]:
        if rank.poll() is None:
            os.kill(rank.pid, signal.SIGKILL)
    end(ranks)


def kill_launch(folder: Path, run_dir: Path, after_s: float) -> bool:
    """Whether everything that it had started has ended by itself."""
    mark = uuid.uuid4().hex
    launch = start_launch(folder, run_dir, mark)
    time.sleep(after_s)
    launch.kill()
    launch.wait()
    return all_gone(mark)


def main(num_kills: int, seed: int) -> int:
    random_ = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        expected, ranks_s = undisturbed(folder)
        launched, launch_s = undisturbed_launch(folder)
        if launched != expected:
            print(f"the losses under launch differ:\n{launched}\n{expected}")
            return 1
        told: Counter[str] = Counter()
        cut_off: Counter[str] = Counter()
        number = 0
        while number < num_kills:
            run_dir = folder / f"run-{number}"
            while number < num_kills:
                # In turn, so that few kills hit each of them too.
                whom = WHOM[(number + seed) % len(WHOM)]
                after_s = random_.uniform(0.0, launch_s if whom == "launch" else ranks_s)
                if whom != "launch":
                    kill_ranks(folder, run_dir, whom, after_s)
                elif not kill_launch(folder, run_dir, after_s):
                    print(f"processes were still there {GONE_WITHIN_S:g} s after launch was killed")
                    return 1
                number += 1
                step = len(losses(run_dir)) if (run_dir / "records" / "steps.jsonl").exists() else 0
                damaged = half_there(run_dir)
                told[whom] += 1
                in_save = has_cut_off(run_dir)
                cut_off[whom] += in_save
                during = " in a save" if in_save else ""
                print(f"kill {number}: {whom} after step {step}{during}, {len(damaged)} half checkpoints", flush=True)
                if damaged:
                    print(*damaged, sep="\n")
                    return 1
                if step == NUM_STEPS:
                    break
            for rank in start(folder, run_dir):
                rank.wait()
            if losses(run_dir) != expected:
                print(f"the losses of {run_dir} differ:\n{losses(run_dir)}\n{expected}")
                print((folder / "out-0").read_text()[-3000:])
                return 1
        print("\n| killed | times | in a save | losses that differ | half checkpoints |\n|---|---:|---:|---:|---:|")
        for whom, times in sorted(told.items()):
            print(f"| {whom} | {times} | {cut_off[whom]} | 0 | 0 |")
    return 0


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(numbers + [200, 0][len(numbers) :])))
