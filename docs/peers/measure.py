"""Measures this trainer beside its peers: the same model, data, batches and threads, in one interleaved run.

    .venv/bin/python docs/peers/measure.py [--setting NAME ...] [--rounds N] [--steps N] [--peers NAME ...]

docs/performance.md says how the comparison is made. settings.py has the settings and the peers. Makes an environment
of its own, .venv-peers, when a peer first needs one. An interrupted measurement goes on with the same --results.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from environment import HERE, peers_python
from results import Row, as_json, other_losses, rows, table
from running import NUM_WARM_UP, Comparison
from settings import PEERS, SETTINGS, Setting

from dist_trainer.benchmark.worth.folder import Folder
from dist_trainer.benchmark.worth.gemm import machine_flops_per_s
from dist_trainer.benchmark.worth.rounds import left, turns
from dist_trainer.cluster.threads import let_threads_wait_briefly

PAGE = HERE.parent / "performance.md"
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"


def main() -> None:
    args = _arguments()
    # For all alike: OpenMP reads it from the environment.
    let_threads_wait_briefly()
    if args.rounds:
        for name in args.setting:
            _measure(name, args)
    shown, wrong = [], []
    for name in args.setting:
        setting, found, num_steps = _read(name, args.results)
        if not found:
            continue
        shown.append(table(name, setting, found, num_steps=num_steps))
        if setting.dtype == "fp32" and not any("--matmul" in ours.switches for ours in setting.ours.values()):
            wrong += [f"{name}: {line}" for line in other_losses(found)]
    text = "\n\n".join(shown)
    print(f"\n{text}")
    if args.write:
        _write(text)
    if wrong:
        sys.exit("\n".join(["the losses differ by more than rounding:", *wrong]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure this trainer beside its peers.")
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--peers", nargs="+", choices=PEERS, metavar="NAME", help="only these of the setting's peers")
    parser.add_argument("--rounds", type=int, default=6, help="0: only show what was measured (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help=f"the first {NUM_WARM_UP} warm up (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("peers_results"), metavar="DIR")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    args = parser.parse_args()
    if args.steps <= NUM_WARM_UP:
        parser.error(f"--steps: more than the {NUM_WARM_UP} that warm up")
    return args


def _measure(name: str, args: argparse.Namespace) -> None:
    setting = SETTINGS[name]
    folder = Folder(args.results / name)
    comparison = Comparison(name, setting, args.steps, folder.path.resolve())
    _begin(comparison)
    peers = [peer for peer in setting.peers if args.peers is None or peer in args.peers]
    if any(PEERS[peer].needs_environment for peer in peers):
        peers_python()
    todo = left(turns([*setting.ours, *peers], args.rounds), folder.measurements())
    for number, turn in enumerate(todo, start=1):
        print(f"{name}: round {turn.round + 1}, {turn.cell} ({number} of {len(todo)}) ", end="", flush=True)
        measured = comparison.measure(turn)
        folder.add(measured)
        print(measured.failure or f"{measured.tokens_per_s:,.0f} tokens/s, loss {measured.loss:.5f}", flush=True)


def _begin(comparison: Comparison) -> None:
    """Writes the files of a comparison, with the rate of the matrix product; refuses a folder of another comparison."""
    path = comparison.folder / "comparison.json"
    now = json.loads(json.dumps({"setting": asdict(comparison.setting), "num_steps": comparison.num_steps}))
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if any(before[key] != value for key, value in now.items()):
            sys.exit(f"{path}: it was measured with another setting or --steps; name another folder with --results")
        return
    comparison.write_files()
    ranks, threads = comparison.setting.num_ranks, comparison.setting.num_threads
    rate = machine_flops_per_s(comparison.setting.dtype, num_ranks=ranks, num_threads=max(1, threads // ranks))
    path.write_text(json.dumps(now | {"flops_per_s": rate}, indent=2) + "\n", encoding="utf-8")


def _read(name: str, results: Path) -> tuple[Setting, list[Row], int]:
    """The rows of a setting, which are also written beside its measurements; none if it was not measured."""
    setting = SETTINGS[name]
    folder = Folder(results / name)
    path = folder.path / "comparison.json"
    if not path.exists():
        return setting, [], 0
    facts = json.loads(path.read_text(encoding="utf-8"))
    found = rows(setting, folder.measurements(), facts["flops_per_s"])
    text = json.dumps(as_json(found), indent=2) + "\n"
    (folder.path / "results.json").write_text(text, encoding="utf-8")
    return setting, found, facts["num_steps"]


def _write(text: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    between = re.compile(f"(?<={BEGIN}\n).*?(?={END})", re.DOTALL)
    PAGE.write_text(between.sub(lambda _: f"\n{text}\n\n", page), encoding="utf-8")


if __name__ == "__main__":
    # Both end the measurement under way with its processes; what was measured is kept.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    main()
