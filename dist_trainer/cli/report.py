"""The `report` command: what a run came to, as a table here and as a page in its folder."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from dist_trainer.cli.parser import Parser
from dist_trainer.cli.train import BASELINE, STRICT
from dist_trainer.disk import cannot_write
from dist_trainer.errors import EXIT_OK, EXIT_TARGET_MISSED


def build_parser() -> Parser:
    parser = Parser("report", "Judge a run's memory and show the run: RUN_DIR/report.html and report.md.")
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="the folder of a run, which may still be going on"
    )
    parser.add_argument(
        "--compare", type=Path, nargs="+", default=[], metavar="RUN_DIR", help="show these runs beside it"
    )
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="RUN_DIR",
        help=BASELINE,
    )
    parser.add_argument("--strict", action="store_true", help=f"exit with {EXIT_TARGET_MISSED} {STRICT}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(argv: list[str]) -> int:
    """0, or under --strict EXIT_TARGET_MISSED if the target was missed or cannot be judged. Raises UserError."""
    args = build_parser().parse(argv)

    from rich.console import Console

    from dist_trainer.report.baseline import read_baseline
    from dist_trainer.report.charts.curves import Compared
    from dist_trainer.report.page import make_page, write_page
    from dist_trainer.report.reading.findings import read_findings, require_records
    from dist_trainer.report.summary import show, summary_of, write
    from dist_trainer.report.verdict import strict_problem

    for run_dir in (args.run_dir, *args.compare):
        require_records(run_dir, where="command line")
    findings = read_findings(args.run_dir)
    baseline = None
    if args.baseline is not None:
        model = findings.asked.run.model if findings.asked.run else None
        baseline = read_baseline(args.baseline, model, findings.asked.deepspeed)
    summary = summary_of(findings, baseline=baseline)
    names = run_names([args.run_dir, *args.compare])
    others = []
    for name, run_dir in zip(names[1:], args.compare, strict=True):
        theirs = read_findings(run_dir)
        others.append(Compared(name, theirs, summary_of(theirs)))
    page = make_page(Compared(names[0], findings, summary), others)
    try:
        # A run under way writes its own summary when it ends.
        if summary.state != "running":
            write(summary, args.run_dir)
        paths = write_page(page, args.run_dir)
    except OSError as error:
        raise cannot_write("cannot write the report", error, args.run_dir) from error
    show(summary, args.run_dir, Console(highlight=False, width=max(100, shutil.get_terminal_size().columns)))
    print("\n".join(str(path) for path in paths))
    problem = strict_problem(summary.verdict) if args.strict else None
    if problem is None:
        return EXIT_OK
    sys.stdout.flush()
    print(f"dist_trainer: strict: {problem}", file=sys.stderr)
    return EXIT_TARGET_MISSED


def run_names(run_dirs: list[Path]) -> list[str]:
    """The folders' names, each with as many of its parent folders as it takes to tell all of them apart."""
    whole = [run_dir.resolve() for run_dir in run_dirs]
    for count in range(1, max(len(path.parts) for path in whole) + 1):
        names = [str(Path(*path.parts[-count:])) for path in whole]
        if len(set(names)) == len(set(whole)):
            return names
    return [str(path) for path in whole]
