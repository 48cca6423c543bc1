"""One cell measured: a fresh run through `launch`, and its figures from its records."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dist_trainer.benchmark.worth import machine
from dist_trainer.benchmark.worth.cells import OTHER_SEEDS
from dist_trainer.benchmark.worth.folder import DS_FILE, RUN_FILE, Folder, Settings
from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.benchmark.worth.rounds import Turn
from dist_trainer.config.deepspeed.rules import precision
from dist_trainer.encoding import printable
from dist_trainer.memory.plan import needed
from dist_trainer.memory.targets import CPU
from dist_trainer.records import DeviceSample, MemoryRecord, memory_file, read_records, samples_file
from dist_trainer.report.reading.findings import read_findings
from dist_trainer.report.summary import mean_of_last, summary_of
from dist_trainer.report.verdict import fullest

# The loss of a run is the mean over so many last steps.
NUM_LAST_STEPS = 4
# How long a run that is told to end may take to do so.
END_GRACE_S = 30.0
_MESSAGE = re.compile(r"^dist_trainer: (?:error: )?(.*)$", re.MULTILINE)


def command(folder: Folder, turn: Turn, settings: Settings, run_dir: Path) -> list[str]:
    """The command line that runs the cell. It needs nothing but the folder, so that anybody can repeat it."""
    cell = folder.cell(turn.cell)
    seed = ["--seed", str(1000 + turn.round)] if turn.cell == OTHER_SEEDS else []
    return [
        *(sys.executable, "-m", "dist_trainer", "launch"),
        *("--launcher", settings.launcher, "--nproc-per-node", str(settings.num_ranks)),
        *("--config", str(cell / RUN_FILE), "--ds", str(cell / DS_FILE), *seed),
        *(["--measure-allocator"] if settings.hardware == CPU else []),
        *("--run-dir", str(run_dir)),
    ]


def measure(folder: Folder, turn: Turn, settings: Settings) -> Measurement:
    """Runs the cell to its end. A run that fails gives a measurement that says why; its output is kept in the logs.

    Raises KeyboardInterrupt, once the run has ended, where this process was told to end meanwhile.
    """
    began = Measurement(turn.cell, turn.round, turn.place, time.time())
    look_again = machine.watch()
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dist_trainer-benchmark-") as place:
        run_dir, log = Path(place) / "run", Path(place) / "log"
        status = _run(command(folder, turn, settings, run_dir), log)
        took_s = time.monotonic() - begin_s
        ended = replace(began, took_s=took_s, machine=look_again())
        text = log.read_text(encoding="utf-8", errors="replace")
        if status == 0:
            return _with_figures(ended, run_dir, settings, begin_s=begin_s)
        folder.logs.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, folder.logs / f"{turn.cell}-{turn.round}.log")
        return replace(ended, failure=reason(text, status))


def reason(text: str, status: int) -> str:
    """Why a run failed: the first line of its error message in `text`, its output; else its exit status."""
    found = _MESSAGE.search(text)
    return printable(found.group(1)) if found else f"it ended with status {status}"


def _run(words: Sequence[str], log: Path) -> int:
    with log.open("wb") as out, _ended_with_us(words, out) as process:
        return process.wait()


@contextlib.contextmanager
def _ended_with_us(words: Sequence[str], out: object) -> Iterator[subprocess.Popen[bytes]]:
    """Starts the process in a session of its own, so that a terminal's Ctrl-C does not reach it directly.

    If it still runs at the end of the block, it is sent SIGINT, and after `END_GRACE_S` its group is killed.
    """
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=out,  # type: ignore[call-overload]
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(END_GRACE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _with_figures(ended: Measurement, run_dir: Path, settings: Settings, *, begin_s: float) -> Measurement:
    findings = read_findings(run_dir)
    columns = findings.steps.columns
    steps, waits = list(columns["step_s"]), list(columns["data_wait_s"])
    skip = settings.num_warm_up
    if len(steps) <= skip:
        return replace(ended, failure=f"it has {len(steps)} steps, of which {skip} are warm-up")
    worst = fullest(summary_of(findings).verdicts)
    peak_bytes = None
    if worst is not None:
        peak_bytes = worst.peak_bytes or max((worst.allocator_bytes or {}).values(), default=None)
    planned = needed(findings.asked.plan.worst).num_bytes if findings.asked.plan else None
    return replace(
        ended,
        precision=precision(findings.asked.deepspeed or {}),  # type: ignore[arg-type]
        num_tokens=int(columns["num_tokens"][-1]),
        warm_up_s=tuple(steps[:skip]),
        step_s=tuple(steps[skip:]),
        data_wait_s=tuple(waits[skip:]),
        first_step_s=_first_step_s(run_dir, begin_s),
        loss=mean_of_last(list(columns["loss"][-NUM_LAST_STEPS:])),
        peak_bytes=peak_bytes,
        planned_bytes=planned,
        energy_j=energy_j(run_dir / "records", settings.num_ranks),
    )


def _first_step_s(run_dir: Path, begin_s: float) -> float | None:
    """From the launch to the end of rank 0's first step, by the monotonic clock that all processes of a host share."""
    records = read_records(run_dir / "records" / memory_file(0), MemoryRecord)
    first = next((record for record in records if record.step == 1 and record.monotonic_s is not None), None)
    return None if first is None or first.monotonic_s is None else max(0.0, first.monotonic_s - begin_s)


def energy_j(records_dir: Path, num_ranks: int) -> float | None:
    """Energy of all GPUs while they were sampled: their power integrated by the trapezoidal rule. None without NVML."""
    total, is_known = 0.0, False
    for rank in range(num_ranks):
        path = records_dir / samples_file(f"rank-{rank}")
        before: DeviceSample | None = None
        for sample in read_records(path, DeviceSample) if path.exists() else ():
            if sample.power_w is None or sample.monotonic_s is None:
                continue
            if before is not None and before.power_w is not None and before.monotonic_s is not None:
                total += (sample.monotonic_s - before.monotonic_s) * (sample.power_w + before.power_w) / 2
                is_known = True
            before = sample
    return total if is_known else None
