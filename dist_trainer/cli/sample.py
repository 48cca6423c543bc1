"""The `sample` command: text from a checkpoint."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from dist_trainer.cli.parser import Parser, not_negative, positive
from dist_trainer.encoding import printable
from dist_trainer.errors import EXIT_OK, UserError


def build_parser() -> Parser:
    parser = Parser(
        "sample", "Text from a checkpoint: what follows each prompt, or without one a text from its beginning."
    )
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a run's folder, its checkpoints folder, or a step-N folder"
    )
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="prompts, one a line")
    parser.add_argument(
        "--tokens", action="append", default=[], metavar="IDS", help="a prompt as ids, '1 2 3'; what follows is ids too"
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json (default: that of the data of the run)"
    )
    parser.add_argument("--max-tokens", type=positive, default=256, metavar="N", help="for each prompt (default: 256)")
    parser.add_argument(
        "--temperature",
        type=_temperature,
        default=1.0,
        metavar="T",
        help="below 1 the likely tokens come more often; 0: always the likeliest (default: 1)",
    )
    parser.add_argument("--top-k", type=positive, metavar="K", help="draw from the K likeliest tokens alone")
    parser.add_argument("--seed", type=not_negative, default=0, metavar="N", help="the same text again (default: 0)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the weights (default: fp32)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU where there is one (default)"
    )
    parser.add_argument("--json", action="store_true", help="print texts and tokens as JSON")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(argv: list[str]) -> int:
    """0. Raises UserError."""
    args = build_parser().parse(argv)
    if args.tokens and (args.prompt or args.prompts or args.tokenizer):
        raise UserError(
            "a prompt is text or ids", where="command line", expected="--tokens, or --prompt, --prompts, --tokenizer"
        )

    from dist_trainer.checkpoints.damage import DamageError
    from dist_trainer.cluster.threads import let_threads_wait_briefly

    let_threads_wait_briefly()
    from dist_trainer.sample.run import Sampling, sample

    try:
        sample(
            Sampling(
                path=args.path,
                prompts=args.prompt,
                prompts_file=args.prompts,
                tokens=args.tokens,
                tokenizer=args.tokenizer,
                max_tokens=args.max_tokens,
                temperature=args.temperature,
                top_k=args.top_k,
                seed=args.seed,
                precision=args.precision,
                device=args.device,
                as_json=args.json,
            ),
            tell=lambda notice: print(printable(f"notice     {notice}"), file=sys.stderr, flush=True),
        )
    except DamageError as damage:
        raise UserError(f"the checkpoint can be read no longer: {damage.problem}", where=str(damage.file)) from damage
    return EXIT_OK


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return value
