"""`dist_trainer data prepare`: text files in, token files out."""

from __future__ import annotations

import sys
from pathlib import Path

from dist_trainer.cli.commands import run_one_of
from dist_trainer.cli.parser import Parser, positive
from dist_trainer.errors import EXIT_OK
from dist_trainer.units import format_count


def build_parser() -> Parser:
    parser = Parser("data prepare", "Make token files from .txt, .md, .py and .jsonl files.")
    parser.add_argument("--input", nargs="+", required=True, type=Path, metavar="PATH", help="files and folders")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a folder that does not exist yet")
    vocabulary = parser.add_mutually_exclusive_group(required=True)
    vocabulary.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json (tokenizers library)")
    vocabulary.add_argument("--vocab-size", type=positive, metavar="N", help="train a byte-level BPE of this size")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(argv: list[str]) -> int:
    return run_one_of({"prepare": _prepare}, argv, of="data")


def _prepare(argv: list[str]) -> int:
    args = build_parser().parse(argv)

    from dist_trainer.data.prepare import prepare

    info = prepare(
        args.input,
        args.output,
        tokenizer=args.tokenizer,
        vocab_size=args.vocab_size,
        progress=sys.stderr.isatty(),
        tell=lambda notice: print(f"notice     {notice}", flush=True),
    )
    print(
        f"{args.output}: {format_count(info.train.num_tokens)} training and {format_count(info.val.num_tokens)} "
        f"validation tokens, vocabulary {info.vocab_size}"
    )
    return EXIT_OK
