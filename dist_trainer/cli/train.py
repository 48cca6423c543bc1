"""`dist_trainer train`: the switches that every rank takes."""

from __future__ import annotations

import argparse
import json
from argparse import BooleanOptionalAction
from collections.abc import Iterator
from pathlib import Path

from dist_trainer.cli.parser import Parser, not_negative, positive, positive_number
from dist_trainer.config.request import DEFAULT_CONFIG, Request, Switches
from dist_trainer.errors import EXIT_TARGET_MISSED

STRICT = "when the memory target is missed, or when it is not known whether it was met"
BASELINE = "a run of the same model whose measured peak is compared with (default: the run file's figure)"


def build_parser() -> Parser:
    parser = Parser("train", "Train the transformer. Every rank runs this; a launcher, or nobody, starts them.")
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = add_what_to_train(parser)
    what.add_argument("--max-steps", type=positive, metavar="N", help="stop after this many optimizer steps in all")
    where = parser.add_argument_group("where")
    where.add_argument("--run-dir", type=Path, metavar="DIR", help="the run's folder (default: a new one under runs/)")
    where.add_argument(
        "--resume",
        default="auto",
        metavar="auto|PATH|never",
        help="continue from a checkpoint; auto: the newest in the run's folder, if any (default: %(default)s)",
    )
    where.add_argument(
        "--init-from",
        type=Path,
        metavar="PATH",
        help="begin a new run with the weights alone of a checkpoint, of a folder of transformers' GPT-2, or of a "
        "DeepSpeed checkpoint; a run that has checkpoints of its own resumes from those",
    )
    add_single_optimisations(parser)
    parser.add_argument(
        "--measure-allocator",
        action="store_true",
        help="on a CPU: record the allocator's exact peaks by phase over the first two steps (these are slower)",
    )
    verdict = parser.add_argument_group("verdict")
    verdict.add_argument("--strict", action="store_true", help=f"exit with {EXIT_TARGET_MISSED} {STRICT}")
    verdict.add_argument("--baseline", type=Path, metavar="RUN_DIR", help=BASELINE)
    parser.add_argument("--force", action="store_true", help="start also where the plan does not fit the memory")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--deepspeed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def add_what_to_train(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    what = parser.add_argument_group("what to train")
    what.add_argument("--config", default=DEFAULT_CONFIG, metavar="NAME|FILE", help="run file (default: %(default)s)")
    what.add_argument(
        "--ds",
        "--deepspeed_config",
        dest="ds",
        metavar="NAME|FILE",
        help="DeepSpeed JSON (default: the one the run file names)",
    )
    what.add_argument("--phase", type=positive, metavar="N", help="train only this phase of the run file")
    what.add_argument("--seed", type=not_negative, metavar="N")
    what.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override any key of either file by its dotted path",
    )
    return what


def add_single_optimisations(parser: argparse.ArgumentParser) -> None:
    single = parser.add_argument_group("single optimisations (these override the JSON)")
    single.add_argument("--micro-batch", type=positive, metavar="N", help="sequences per rank and micro batch")
    single.add_argument("--accumulation", type=positive, metavar="N", help="micro batches per optimizer step")
    single.add_argument("--precision", choices=("fp32", "fp16", "bf16"))
    single.add_argument("--checkpointing", action=BooleanOptionalAction, help="activation checkpointing")
    single.add_argument("--fused", action=BooleanOptionalAction, help="fused AdamW")
    single.add_argument(
        "--compile",
        nargs="?",
        const="always",
        choices=("always", "auto"),
        help="torch.compile; auto: tried in the run, and kept if steps become faster (the run file's key "
        "compile_if_faster)",
    )
    single.add_argument("--no-compile", dest="compile", action="store_const", const="never")
    single.add_argument(
        "--learning-rate",
        "--lr",
        type=positive_number,
        metavar="RATE",
        help="the peak of the schedule, wherever optimizer and scheduler say it",
    )
    single.add_argument(
        "--matmul",
        choices=("fp32", "tf32", "bf32", "auto"),
        help="the precision in which fp32 matrices are multiplied (the run file's key matmul)",
    )
    single.add_argument("--no-optimize", action="store_true", help="ds_configs/baseline.json: fp32, nothing on")


def request_from(args: argparse.Namespace) -> Request:
    return Request(
        config=args.config,
        ds=args.ds,
        no_optimize=args.no_optimize,
        switches=Switches(
            micro_batch=args.micro_batch,
            accumulation=args.accumulation,
            precision=args.precision,
            checkpointing=args.checkpointing,
            fused=args.fused,
            compile=None if args.compile is None else args.compile != "never",
            learning_rate=args.learning_rate,
        ),
        settings=(*_settings_of_switches(args), *args.settings),
        seed=args.seed,
        phase=args.phase,
    )


def _settings_of_switches(args: argparse.Namespace) -> Iterator[str]:
    """The run file's keys that have a switch of their own, as `--set` takes them."""
    if args.matmul is not None:
        yield f"matmul={args.matmul}"
    if args.compile in ("always", "auto"):
        yield f"compile_if_faster={json.dumps(args.compile == 'auto')}"


def main(argv: list[str]) -> int:
    """Trains as one rank; does not return once the rank has joined the others."""
    import os

    from dist_trainer.cluster.mpi import ask_mpi
    from dist_trainer.cluster.rank import find_rank
    from dist_trainer.errors import UserError
    from dist_trainer.train.failure import fail_before_meeting
    from dist_trainer.train.timeline import Timeline

    timeline = Timeline()
    try:
        rank = find_rank(os.environ, ask_mpi)
    except UserError as error:
        # A rank that does not know its number reports as rank 0 would: nobody else can do it for this one.
        fail_before_meeting(error, rank=0, debug="--debug" in argv)
    try:
        args = build_parser().parse(argv)
    except UserError as error:
        fail_before_meeting(error, rank=rank.rank, debug="--debug" in argv)

    from dist_trainer.train.job import RankJob
    from dist_trainer.train.start import start

    job = RankJob(
        request=request_from(args),
        rank=rank,
        run_dir=args.run_dir,
        resume=args.resume,
        max_steps=args.max_steps,
        debug=args.debug,
        measure_allocator=args.measure_allocator,
        strict=args.strict,
        baseline=args.baseline,
        force=args.force,
        init_from=args.init_from,
    )
    start(job, timeline)
