"""`dist_trainer benchmark`: what settings are worth, what memory they take, and how far plans are off."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dist_trainer.cli.commands import run_one_of
from dist_trainer.cli.parser import Parser, positive
from dist_trainer.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, UserError

if TYPE_CHECKING:
    from dist_trainer.benchmark.worth.measuring import Bench, Wanted


NUM_RANKS = 2


def build_worth_parser() -> Parser:
    parser = Parser(
        "benchmark",
        "Measure what each optimisation is worth on this machine: cells that differ from a baseline in one thing, in\n"
        "rounds of changing order. It goes on where it was stopped. Others: benchmark {memory,plan-error} --help",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", action="store_true", help="every cell")
    what.add_argument("--only", type=_names, metavar="CELL,...", help="these cells, and the baselines")
    what.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("OLD", "NEW"),
        help="two folders of results side by side; exit status 1 where their intervals show a regression",
    )
    what.add_argument(
        "--sweep",
        metavar="world=N,M,...",
        help="strong and weak scaling over these numbers of ranks of this host",
    )
    what.add_argument("--loader", action="store_true", help="the data path alone, against a plain read of the file")
    parser.add_argument(
        "--model-size", default="tiny", metavar="NAME", help="a shipped run file (default: %(default)s)"
    )
    parser.add_argument("--nproc-per-node", type=positive, metavar="N", help=f"ranks (default: {NUM_RANKS})")
    parser.add_argument("--ds", metavar="NAME|FILE", help="the DeepSpeed JSON of a sweep (default: the run file's)")
    parser.add_argument("--launcher", choices=("torchrun", "deepspeed", "mpirun"), default="torchrun")
    parser.add_argument("--repeats", type=positive, metavar="N", help="rounds (default: by model size)")
    parser.add_argument("--steps", type=positive, metavar="N", help="optimizer steps of a run (default: by model size)")
    parser.add_argument("--sequence-length", type=positive, metavar="N", help="tokens (default: the model's context)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="the folder; one of the same settings goes on")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def build_memory_parser() -> Parser:
    parser = Parser("benchmark memory", "Make the table of docs/memory.md: each setting planned, and measured.")
    parser.add_argument("--configs", nargs="+", metavar="NAME|FILE", help="run files (default: small medium large)")
    parser.add_argument("--ds", nargs="+", metavar="NAME|FILE", help="DeepSpeed JSONs (default: the memory savers)")
    parser.add_argument("--gpus", nargs="+", type=positive, metavar="N", help="numbers of GPUs (default: 1 2 4 8)")
    parser.add_argument("--no-measure", action="store_true", help="plan, and show what was measured before")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers of this file")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def build_plan_error_parser() -> Parser:
    parser = Parser("benchmark plan-error", "Hold plans against what the real engine allocates on the CPU.")
    parser.add_argument(
        "--matrix",
        choices=("zero", "precision"),
        default="zero",
        help="zero: stages, world sizes, buckets, overlap and ranks; precision: one rank without ZeRO, at full size "
        "too (default: %(default)s)",
    )
    parser.add_argument("--stages", nargs="+", type=int, choices=(0, 1, 2, 3), metavar="N")
    parser.add_argument("--world-sizes", nargs="+", type=positive, metavar="N")
    parser.add_argument("--ds", metavar="NAME|FILE", help="the JSON that the cases' own keys override (default: bf16)")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument(
        "--tolerance",
        type=_fraction,
        default=0.02,
        metavar="FRACTION",
        help="exit with status 1 when a plan's peak is further off than this (default: %(default)s)",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(argv: list[str]) -> int:
    if argv and argv[0].startswith("-"):
        return _worth(argv)
    return run_one_of({"memory": _memory, "plan-error": _plan_error}, argv, of="benchmark")


def _worth(argv: list[str]) -> int:
    args = build_worth_parser().parse(argv)
    if args.compare:
        from dist_trainer.benchmark.worth import compare

        comparison = compare.compare_folders(*args.compare)
        print(compare.text(comparison), end="")
        return comparison.exit_status
    if args.loader:
        return _loader(args.model_size)
    if args.sweep is None and args.ds is not None:
        raise UserError("only a sweep takes a DeepSpeed JSON", where="--ds", found=args.ds, expected="with --sweep")
    if args.sweep is not None and args.nproc_per_node is not None:
        raise UserError(
            "a sweep says its numbers of ranks itself",
            where="--nproc-per-node",
            found=args.nproc_per_node,
            hint="omit it",
        )

    from dist_trainer.benchmark.worth import measuring

    wanted = measuring.Wanted(
        model_size=args.model_size,
        only=args.only,
        num_ranks=args.nproc_per_node or NUM_RANKS,
        num_rounds=args.repeats,
        num_steps=args.steps,
        sequence_length=args.sequence_length,
        launcher=args.launcher,
        results=args.results,
    )
    if args.sweep is not None:
        return _sweep(wanted, args.sweep, args.ds)

    from dist_trainer.benchmark.worth.telling import measure_rates, tell

    bench = measuring.prepare(wanted, hardware=measuring.hardware_here())
    return _measure_and_tell(bench, tell, afterwards=measure_rates)


def _sweep(wanted: Wanted, sweep: str, ds: str | None) -> int:
    from dist_trainer.benchmark.scaling.sweep import parse

    worlds = parse(sweep)

    from dist_trainer.benchmark.scaling.measuring import prepare
    from dist_trainer.benchmark.scaling.telling import tell
    from dist_trainer.benchmark.worth.measuring import hardware_here
    from dist_trainer.launch.hosts.facts import read_host_facts
    from dist_trainer.memory.targets import CPU

    hardware = hardware_here()
    num_gpus = 0 if hardware == CPU else read_host_facts(os.environ).num_gpus
    bench = prepare(wanted, worlds, ds=ds, hardware=hardware, num_gpus=num_gpus)
    return _measure_and_tell(bench, partial(tell, num_gpus=num_gpus))


def _measure_and_tell(
    bench: Bench, tell: Callable[[Bench], tuple[Path, ...]], *, afterwards: Callable[[Bench], None] | None = None
) -> int:
    """`afterwards`: what else is to be measured, once all cells are."""
    from dist_trainer.benchmark.worth import measuring

    _say(f"results    {bench.folder.path}")
    status = EXIT_OK
    try:
        measuring.run(bench, say=_say)
        if afterwards is not None:
            afterwards(bench)
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    for path in tell(bench):
        _say(f"           {path}")
    if status == EXIT_INTERRUPTED:
        _say(f"stopped; it goes on with the same switches and --results {bench.folder.path}")
    return status


def _loader(model_size: str) -> int:
    from dist_trainer.benchmark import loader
    from dist_trainer.benchmark.worth.cells import base_run
    from dist_trainer.data.corpus import standard_library_dataset
    from dist_trainer.data.tokens import open_tokens

    run = base_run(model_size, num_steps=1)
    vocab_size = run["model"]["vocab_size"]
    tokens = open_tokens(standard_library_dataset(vocab_size, progress=False), "train", vocab_size)
    rates = loader.measure(tokens, sequence_length=run["phases"][0]["sequence_length"], say=_say)
    for line in loader.table(rates):
        _say(line)
    return EXIT_OK


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _memory(argv: list[str]) -> int:
    args = build_memory_parser().parse(argv)

    from dist_trainer.benchmark import memory_table
    from dist_trainer.benchmark.memory_text import around_table, table_text, write_table
    from dist_trainer.benchmark.on_gpus import num_gpus

    wanted = memory_table.settings(
        args.configs or memory_table.CONFIGS, args.ds or memory_table.DS, args.gpus or memory_table.NUM_GPUS
    )
    if args.write is not None:
        around_table(args.write)
    gpus = 0 if args.no_measure else num_gpus()
    rows = memory_table.make_rows(wanted, measures=not args.no_measure, gpus=gpus, say=_say)
    text = table_text(rows)
    if args.write is None:
        print(text, end="")
    else:
        write_table(text, args.write)
    return EXIT_OK


def _plan_error(argv: list[str]) -> int:
    args = build_plan_error_parser().parse(argv)

    from dist_trainer.benchmark import plan_error

    if args.matrix == "precision":
        cases = list(plan_error.precision_cases())
    else:
        cases = list(
            plan_error.zero_cases(args.stages or plan_error.STAGES, args.world_sizes or plan_error.WORLD_SIZES)
        )
    rows = plan_error.run(cases, ds=args.ds or plan_error.BASE, settings=args.settings, say=_say)
    print(plan_error.summary(rows, args.tolerance))
    return EXIT_OK if all(abs(row.error) <= args.tolerance for row in rows) else EXIT_FAILURE


def _say(line: str) -> None:
    print(line, flush=True)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction from 0 to 1")
    return value
