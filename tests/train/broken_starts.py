"""Starts that all ranks fail at nearly the same moment: whichever is first, the terminal shows one message, once.

The long form, of which the suite runs one start a launcher; it takes about eight seconds a start on two cores. srun is
asked in a SLURM of this host alone, for which it has to be started by root:

    PYTHONPATH=tests:tests/train python tests/train/broken_starts.py [NUM_STARTS [LAUNCHER...]]
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ranks import BRISK, Ended, bin_environment, mini_config, run

import slurm

START = {
    "torchrun": ("torchrun", "--nproc_per_node=2", "-m", "dist_trainer"),
    "deepspeed": ("deepspeed", "--num_accelerators", "2", "--module", "dist_trainer"),
    "mpirun": ("mpirun", "-n", "2", "--oversubscribe", "python", "-m", "dist_trainer"),
}
SRUN = ("srun", "--ntasks=2", "--kill-on-bad-exit=1", sys.executable, "-m", "dist_trainer")
LAUNCHERS = (*START, "srun")


def start(
    folder: Path, run_dir: Path, launcher: str, *words: str, is_bare: bool, environ: Mapping[str, str] | None = None
) -> Ended:
    """Trains on two ranks, by the launcher itself or under `launch`; for srun `environ` says which SLURM."""
    under = (sys.executable, "-m", "dist_trainer", "launch", "--launcher", launcher)
    if launcher == "srun":
        before = (*SRUN, "train") if is_bare else ("salloc", "--quiet", "--ntasks=2", *under)
    else:
        before = (*START[launcher], "train") if is_bare else (*under, "--nproc-per-node", "2")
    switches = ("--config", str(mini_config(folder)), "--run-dir", str(run_dir), *BRISK)
    return run([*before, *switches, *words], cwd=folder, environ=environ)


@contextmanager
def environment(launcher: str, folder: Path) -> Iterator[Mapping[str, str] | None]:
    if launcher != "srun":
        yield None
        return
    with slurm.one_host_slurm(folder / "slurm") as environ:
        yield bin_environment(environ)


def without_its_checkpoint(run_dir: Path) -> list[str]:
    """`latest` names what is not there."""
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run_dir / "checkpoints" / "latest").write_text("step-99")
    return []


def with_a_torn_file(run_dir: Path) -> list[str]:
    """Every rank's own part of the checkpoint was cut off."""
    shutil.copytree(run_dir.with_name("whole") / "checkpoints", run_dir / "checkpoints", dirs_exist_ok=True)
    for path in (run_dir / "checkpoints" / "step-1").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:100])
    return []


def with_a_name_mistyped(run_dir: Path) -> list[str]:
    return ["--resume", str(run_dir / "checkpoint" / "step-1")]


def with_a_rate_too_high(run_dir: Path) -> list[str]:
    """All ranks find at the same moment that the loss is not finite."""
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    return ["--set", "scheduler.params.warmup_max_lr=1e30"]


BREAKAGES: dict[str, Callable[[Path], list[str]]] = {
    "latest names nothing": without_its_checkpoint,
    "a torn file": with_a_torn_file,
    "--resume is mistyped": with_a_name_mistyped,
    "the loss is not finite": with_a_rate_too_high,
}


def messages(output: str) -> list[str]:
    """Wherever in a line: mpirun makes a terminal for its ranks, and there is a progress bar."""
    return re.findall(r"dist_trainer: [^\n]*", output)


def main(num_starts: int, launchers: list[str]) -> int:
    num_wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder, run_dir = Path(name), Path(name) / "run"
        switches = ("--max-steps", "1", "--set", "checkpoints.at_end=true")
        made = start(folder, folder / "whole", "torchrun", *switches, is_bare=False)
        assert made.status == 0, made.output
        for launcher in launchers:
            with environment(launcher, folder) as environ:
                for number in range(2 * num_starts):
                    is_bare = number >= num_starts
                    what, break_it = list(BREAKAGES.items())[number % len(BREAKAGES)]
                    ended = start(folder, run_dir, launcher, *break_it(run_dir), is_bare=is_bare, environ=environ)
                    is_right = ended.status != 0 and len(messages(ended.output)) == 1
                    num_wrong += not is_right
                    how = "bare" if is_bare else "under launch"
                    print(f"{launcher} {how}, {what}: status {ended.status}, {messages(ended.output)}", flush=True)
                    if not is_right:
                        print(ended.output, flush=True)
    print(f"{num_wrong} starts were not told of by one message")
    return int(num_wrong > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 20, sys.argv[2:] or list(LAUNCHERS)))
