"""Tells runs to stop at random moments, starts them again, and holds their losses against those of an undisturbed one.

    PYTHONPATH=tests:tests/train python tests/train/signals_at_random.py [SIGNALS [SEED [FORM...]]]

A form is a launcher under `launch` ("launch srun"), or the launcher by itself ("torchrun"). Two ranks with a worker
each train in two micro batches a step, with dropout; the signal comes to the launching process between its start and
the end of an undisturbed run of that form. Then the run must end with 128 + the signal (with 0, if it was at its end),
leave nothing running, and have saved every step that it has taken; started again, it must go on with the losses of an
undisturbed run, to the bit.
Prints a line for each signal, and a table. Status 1 at the first that is otherwise. srun needs root, for a SLURM of
this host alone. It takes about ten seconds a signal on two cores.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from broken_starts import START, environment
from ranks import bin_environment, losses

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.folder import saves
from dist_trainer.checkpoints.verify import damages
from dist_trainer.endings import INTERRUPTED, cause_among, last_step
from dist_trainer.records import EVENTS_FILE, STEPS_FILE, Event, read_records

MINI = """\
name: mini
deepspeed: zero2
seed: 7
model: {num_layers: 2, hidden_size: 32, num_heads: 2, vocab_size: 2048, context_length: 64, dropout: 0.1}
phases:
  - {name: short, sequence_length: 32, steps: 80}
  - {name: long, sequence_length: 64, steps: 80}
evaluation: {num_batches: 4}
checkpoints: {every_steps: 30}
data: {num_workers: 1}
"""
NUM_STEPS = 160
FORMS = ("launch torchrun", "launch deepspeed", "launch mpirun", "launch srun", "torchrun")
NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# torchrun by itself does not hear the others, and ends with 1.
OF_TORCHRUN = (signal.SIGTERM, signal.SIGINT)
LIMIT_S = 120.0
BEFORE, SAVED, AT_END = "before the first step", "saved", "at its end"


@dataclass(frozen=True)
class Told:
    """What became of a run that was told to stop. `problem`: what is wrong with that."""

    outcome: str
    step: int
    took_s: float
    problem: str | None = None


def command(form: str, folder: Path, run_dir: Path) -> list[str]:
    (folder / "mini.yaml").write_text(MINI)
    switches = ["--config", str(folder / "mini.yaml"), "--run-dir", str(run_dir), "--accumulation", "2"]
    if not form.startswith("launch "):
        return [*START[form], "train", *switches]
    launcher = form.removeprefix("launch ")
    under = [sys.executable, "-m", "dist_trainer", "launch", "--launcher", launcher]
    if launcher == "srun":
        # salloc by itself has other statuses for a command that a signal has ended.
        return ["salloc", "--quiet", "--ntasks=2", "sh", "-c", '"$@"; exit $?', "sh", *under, *switches]
    return [*under, "--nproc-per-node", "2", *switches]


@contextmanager
def started(
    form: str, folder: Path, run_dir: Path, environ: Mapping[str, str] | None
) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "output").open("ab") as output:
        process = subprocess.Popen(
            command(form, folder, run_dir),
            cwd=folder,
            env=bin_environment(environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        for one in left_over(run_dir):
            one.kill()
        process.kill()
        process.wait()


def launching(form: str, process: subprocess.Popen[bytes]) -> psutil.Process:
    """The process that a person or a script would tell: that of `launch`, which under salloc a shell starts."""
    salloc = psutil.Process(process.pid)
    while form == "launch srun" and process.poll() is None:
        for child in salloc.children(recursive=True):
            try:
                if child.cmdline()[:1] == [sys.executable]:
                    return child
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)
    return salloc


def left_over(run_dir: Path) -> list[psutil.Process]:
    """Processes of the run that have not ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(run_dir) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def tell(
    form: str,
    number: signal.Signals,
    after_s: float,
    folder: Path,
    run_dir: Path,
    environ: Mapping[str, str] | None = None,
) -> Told:
    """Starts the run, or lets it go on, and tells it to stop after so many seconds."""
    records = run_dir / "records"
    before = last_step(run_dir) or 0
    events_size = (records / EVENTS_FILE).stat().st_size if (records / EVENTS_FILE).exists() else 0
    with started(form, folder, run_dir, environ) as process:
        launch = launching(form, process)
        time.sleep(after_s)
        told_s = time.monotonic()
        # A process that has no handler yet ends by the signal; so does a shell's.
        if process.poll() is None:
            launch.send_signal(number)
        try:
            status = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            return Told("", 0, LIMIT_S, f"it did not end within {LIMIT_S:.0f} s")
        took_s = time.monotonic() - told_s
        status = 128 - status if status < 0 else status
        running = left_over(run_dir)
        if running:
            return Told("", 0, took_s, f"still there: {[one.cmdline() for one in running]}")
    step = last_step(run_dir) or 0
    whole = [one for one in saves(run_dir / "checkpoints") if not list(damages(one, index.read(one)))]
    newest = max((index.read(folder).position.step for folder in whole), default=0)
    if len(whole) < len(list(saves(run_dir / "checkpoints"))):
        return Told("", step, took_s, "a checkpoint is not whole")
    if status == 0:
        problem = None if step == NUM_STEPS else f"status 0 at step {step}"
        return Told(AT_END, step, took_s, problem)
    # torchrun ends with 1 once it hears signals, and before that as any process does.
    if status not in ((1, 128 + number) if form == "torchrun" else (128 + number,)):
        return Told("", step, took_s, f"status {status}")
    if step == before:
        return Told(BEFORE, step, took_s, None if newest == before else f"step {before} is lost")
    end = cause_among(list(read_records(records / EVENTS_FILE, Event, start=events_size)))
    if end is None or end.kind != INTERRUPTED:
        return Told("", step, took_s, f"its events say {end}")
    if newest != step:
        return Told("", step, took_s, f"step {step} was taken, and the newest checkpoint is that of step {newest}")
    return Told(SAVED, step, took_s)


def undisturbed(
    folder: Path, form: str = "launch torchrun", environ: Mapping[str, str] | None = None
) -> tuple[list[float], float]:
    """The losses of a run that is not told to stop, and how long it took."""
    run_dir = folder / f"undisturbed-{form.replace(' ', '-')}"
    began_s = time.monotonic()
    with started(form, folder, run_dir, environ) as process:
        if process.wait(LIMIT_S):
            sys.exit((folder / "output").read_text())
    return losses(run_dir), time.monotonic() - began_s


def problem_of_end(folder: Path, run_dir: Path, expected: Sequence[float]) -> str | None:
    """Lets the run go on to its end, if it is not there yet; what is wrong with its losses."""
    if not (run_dir / "records" / STEPS_FILE).exists() or len(losses(run_dir)) < NUM_STEPS:
        with started("launch torchrun", folder, run_dir, None) as process:
            status = process.wait(LIMIT_S)
        if status:
            return f"going on it ended with status {status}"
    found = losses(run_dir)
    return None if found == list(expected) else f"its losses differ: {json.dumps(found)}, not {json.dumps(expected)}"


def main(num_signals: int, seed: int, forms: Sequence[str]) -> int:
    # A shell starts what is in its background deaf to Ctrl-C, and so would be all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random_ = random.Random(seed)
    counted: Counter[tuple[str, str]] = Counter()
    longest_s: dict[str, float] = dict.fromkeys(forms, 0.0)
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        environs = {form: stack.enter_context(environment(form.split()[-1], folder)) for form in forms}
        expected, _ = undisturbed(folder)
        took_s = {form: undisturbed(folder, form, environs[form])[1] for form in forms}
        run_dir, number_of_run = folder / "run-0", 0
        for number in range(num_signals):
            form = forms[number % len(forms)]
            sent = random_.choice(OF_TORCHRUN if form == "torchrun" else NUMBERS)
            told = tell(form, sent, random_.uniform(0.0, took_s[form]), folder, run_dir, environs[form])
            print(f"{number + 1}: {form}, {sent.name}: {told}", flush=True)
            counted[form, told.outcome] += 1
            longest_s[form] = max(longest_s[form], told.took_s)
            problem = told.problem
            if problem is None and (told.outcome == AT_END or number == num_signals - 1):
                problem = problem_of_end(folder, run_dir, expected)
                number_of_run += 1
                run_dir = folder / f"run-{number_of_run}"
            if problem is not None:
                print(problem)
                print((folder / "output").read_text()[-4000:])
                shutil.copytree(folder, Path.cwd() / "signals_at_random_failed", dirs_exist_ok=True)
                return 1
    print(f"\n| | {BEFORE} | {SAVED} | {AT_END} | steps lost | losses that differ | longest |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for form in forms:
        numbers = " | ".join(str(counted[form, outcome]) for outcome in (BEFORE, SAVED, AT_END))
        print(f"| {form} | {numbers} | 0 | 0 | {longest_s[form]:.1f} s |")
    return 0


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:3]]
    num_signals, seed = numbers + [100, 0][len(numbers) :]
    sys.exit(main(num_signals, seed, sys.argv[3:] or FORMS))
