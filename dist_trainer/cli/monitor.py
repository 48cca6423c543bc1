"""`dist_trainer monitor -- COMMAND`: what any program holds on its GPUs and on the host, while it runs."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dist_trainer.cli.parser import Parser
from dist_trainer.cluster.folder_lock import FolderLock
from dist_trainer.config.run import MIN_SAMPLE_EVERY_S
from dist_trainer.config.run_dir import create_next_run_dir, create_run_dir
from dist_trainer.disk import write_text
from dist_trainer.encoding import all_as_utf8
from dist_trainer.endings import show_life
from dist_trainer.errors import UserError
from dist_trainer.records import EVENTS_FILE, Event, RecordWriter
from dist_trainer.redact import redacted_argv
from dist_trainer.units import GB, format_duration, format_gb

if TYPE_CHECKING:
    from dist_trainer.monitor.series import Series
    from dist_trainer.monitor.watch import Watch

DEFAULT_INTERVAL_S = 0.1


def build_parser() -> Parser:
    parser = Parser(
        "monitor", "Record the memory of any program on its GPUs and on the host: monitor -- COMMAND ARGS..."
    )
    parser.add_argument(
        "--interval",
        type=_interval_s,
        default=DEFAULT_INTERVAL_S,
        metavar="S",
        help="seconds from one look to the next (default: %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="the record's folder (default: a new one under runs/)"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(argv: list[str]) -> int:
    """Runs the command and returns its exit status, 128 + N when signal N ended it. Raises UserError."""
    own, command = _split(argv)
    args = build_parser().parse(own)
    if not command:
        raise UserError(
            "say which command to watch", where="command line", expected="monitor [SWITCHES] -- COMMAND ARGS..."
        )
    if shutil.which(command[0]) is None:
        raise UserError(
            "no such command", where="command line", found=command[0], hint="give its path, or look at PATH"
        )
    run_dir = _run_dir(args.output, command)
    with FolderLock(run_dir, "launch", say=lambda text: print(f"monitor: {text}", file=sys.stderr)):
        if args.output is not None:
            # Another run may have used the folder, and ended, before this one had the lock.
            _require_unused(run_dir)
        return _watch(command, run_dir, interval_s=args.interval)


def _watch(command: list[str], run_dir: Path, *, interval_s: float) -> int:
    from dist_trainer.monitor.transparent import run_transparently
    from dist_trainer.monitor.watch import Watch

    records_dir = run_dir / "records"
    started_s, began_s = time.time(), time.monotonic()
    try:
        events = RecordWriter(records_dir / EVENTS_FILE)
        _write_command(command, run_dir, interval_s=interval_s, started_s=started_s)
        life = show_life(records_dir / EVENTS_FILE)
        events.write(Event("start", shlex.join(command), 0, started_s, {"interval_s": interval_s, **life}))
        watch = Watch(records_dir, os.environ, interval_s)
        # What the GPUs held before the command began.
        watch.sampler.look(is_full=True)
    except OSError as error:
        raise UserError("the record cannot be written", where=str(run_dir), found=error.strerror) from error

    def started(pid: int) -> None:
        watch.tree.follow(pid)
        watch.sampler.start()

    try:
        status = run_transparently(command, os.environ, started)
    finally:
        watch.close()
    seconds = time.monotonic() - began_s
    facts = {"status": status, "seconds": round(seconds, 3)}
    events.write(Event("end", f"status {status}", 0, time.time(), facts))
    events.close()
    for line in summary_lines(watch, run_dir, status=status, seconds=seconds):
        print(line, file=sys.stderr)
    return status


def summary_lines(watch: Watch, run_dir: Path, *, status: int, seconds: float) -> list[str]:
    """For the terminal: how the command ended (`status` as `main` returns it), the peaks, and the notices."""
    ending = f"ended by {signal.Signals(status - 128).name}" if _is_signal(status) else f"status {status}"
    lines = [f"monitor: {ending} after {format_duration(seconds)}; records in {run_dir}"]
    lines += [f"  {name:<6} {_peaks(series)}" for name, series in watch.series.items()]
    lines += [f"  notice {problem}" for problem in dict.fromkeys(watch.problems)]
    return lines


def _peaks(series: Series) -> str:
    rss = "resident set not known" if series.peak_rss_bytes is None else f"{_amount(series.peak_rss_bytes)} resident"
    if series.peak_used_bytes is None:
        return f"peak {rss}"
    total = "" if series.total_bytes is None else f" of {_amount(series.total_bytes)}"
    version = "" if series.used_version == 2 else ", with what the driver reserves"
    own = "the command's part is not known"
    if series.peak_process_bytes is not None:
        own = f"{_amount(series.peak_process_bytes)} by the command"
    return f"peak {_amount(series.peak_used_bytes)} used{total}{version}; {own}; {rss}"


def _amount(num_bytes: int) -> str:
    return format_gb(num_bytes) if num_bytes >= GB / 10 else f"{num_bytes / 10**6:.1f} MB"


def _is_signal(status: int) -> bool:
    return status > 128 and status - 128 in set(signal.Signals)


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    if "--" in argv:
        place = argv.index("--")
        return argv[:place], argv[place + 1 :]
    return argv, []


def _interval_s(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not MIN_SAMPLE_EVERY_S <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {MIN_SAMPLE_EVERY_S} to 3600")
    return seconds


def _run_dir(wanted: Path | None, command: list[str]) -> Path:
    if wanted is None:
        return create_next_run_dir("monitor", Path(command[0]).name)
    _require_unused(wanted)
    create_run_dir(wanted)
    return wanted


def _require_unused(run_dir: Path) -> None:
    if (run_dir / "records").exists():
        raise UserError(
            "the folder holds the record of another run", where="--output", found=str(run_dir), hint="name a new folder"
        )


def _write_command(command: list[str], run_dir: Path, *, interval_s: float, started_s: float) -> None:
    """RUN_DIR/resolved/launch.json: what was watched."""
    record = {
        "launcher": "monitor",
        "argv": redacted_argv(command),
        "env": {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER") if name in os.environ},
        "num_ranks": None,
        "host": socket.gethostname(),
        "start_time_s": started_s,
        "cwd": str(Path.cwd()),
        "interval_s": interval_s,
    }
    write_text(run_dir / "resolved" / "launch.json", json.dumps(all_as_utf8(record), indent=2) + "\n")
