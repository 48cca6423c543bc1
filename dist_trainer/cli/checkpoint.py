"""The `checkpoint` command: what is in checkpoints, whether they are whole, how two differ, other forms of them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dist_trainer.cli.commands import run_one_of
from dist_trainer.cli.parser import Parser, positive
from dist_trainer.encoding import printable
from dist_trainer.errors import EXIT_FAILURE, EXIT_OK, EXIT_USER_ERROR
from dist_trainer.units import format_bytes

if TYPE_CHECKING:
    from dist_trainer.checkpoints.find import Found
    from dist_trainer.checkpoints.resuming import Resuming

_ANY = "a run's folder, its checkpoints folder, or one step-N folder"
# What is read faster shows no progress.
_LARGE_BYTES = 10**9


def build_list_parser() -> Parser:
    parser = Parser(
        "checkpoint list", "Say which checkpoints there are, which are whole, and which a run resumes from."
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a run's folder, or its checkpoints folder")
    return _with_common(parser, json_of="the list")


def build_inspect_parser() -> Parser:
    from dist_trainer.cli import plan, train

    parser = Parser(
        "checkpoint inspect",
        "Say what is in a checkpoint; with the switches of a run, whether it can resume from it, and what changes.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help=f"{_ANY}; of several the one that a run resumes from")
    train.add_what_to_train(parser)
    train.add_single_optimisations(parser)
    plan.add_ranks(parser.add_argument_group("ranks"))
    return _with_common(parser, json_of="what is there")


def build_verify_parser() -> Parser:
    parser = Parser("checkpoint verify", "Read every byte, and say which are not as they were written.")
    parser.add_argument("path", type=Path, metavar="PATH", help=f"{_ANY}; of several all are read")
    return _with_common(parser)


def build_diff_parser() -> Parser:
    parser = Parser(
        "checkpoint diff", "Say in what two checkpoints differ, of whatever ranks and ZeRO stages they are."
    )
    for name in ("A", "B"):
        parser.add_argument(name.lower(), type=Path, metavar=name, help=_ANY)
    return _with_common(parser)


def build_export_parser() -> Parser:
    parser = Parser("checkpoint export", "Write a checkpoint's weights in the form of another program.")
    parser.add_argument("path", type=Path, metavar="PATH", help=_ANY)
    parser.add_argument("output", type=Path, metavar="DIR", help="a folder that does not exist yet")
    parser.add_argument(
        "--to", choices=("hf",), required=True, help="hf: what transformers' GPT2LMHeadModel.from_pretrained loads"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE|DIR",
        help="a tokenizer.json, or the folder of prepared data that has it: exported too",
    )
    return _with_common(parser)


def build_import_parser() -> Parser:
    parser = Parser("checkpoint import", "Make a checkpoint of the weights of another program.")
    parser.add_argument(
        "path",
        type=Path,
        metavar="DIR",
        help="a folder of transformers' GPT-2 (safetensors), or a DeepSpeed checkpoint",
    )
    parser.add_argument("--to", type=Path, required=True, metavar="OUT", help="a folder that does not exist yet")
    parser.add_argument(
        "--num-heads", type=positive, metavar="N", help="attention heads, which DeepSpeed's files do not say"
    )
    return _with_common(parser)


def main(argv: list[str]) -> int:
    verbs = {"list": _list, "inspect": _inspect, "verify": _verify, "diff": _diff, "export": _export, "import": _import}
    return run_one_of(verbs, argv, of="checkpoint")


def _with_common(parser: Parser, *, json_of: str | None = None) -> Parser:
    if json_of is not None:
        parser.add_argument("--json", action="store_true", help=f"print {json_of} as JSON")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _list(argv: list[str]) -> int:
    args = build_list_parser().parse(argv)

    from dist_trainer.checkpoints import show
    from dist_trainer.checkpoints.standing import list_checkpoints

    found = list_checkpoints(args.path)
    sys.stdout.write(_json(show.listing_json(found)) if args.json else show.listing(found))
    return EXIT_OK


def _inspect(argv: list[str]) -> int:
    """0, or 1 if the run that the switches describe could not resume from it. Raises UserError."""
    parser = build_inspect_parser()
    args = parser.parse(argv)

    from dist_trainer.checkpoints import show
    from dist_trainer.checkpoints.find import Found
    from dist_trainer.checkpoints.standing import damaged, one_at, standing_of

    standing = standing_of(one_at(args.path))
    index = standing.index
    if index is None:
        raise damaged(standing.damages[0])
    asked = None
    if _describes_run(parser, args):
        asked = _resuming(args, Found(standing.folder, index))
    written = _json(show.inspection_json(standing, index, asked)) if args.json else None
    sys.stdout.write(written or show.inspection(standing, index, asked))
    return EXIT_FAILURE if asked is not None and asked.refusal is not None else EXIT_OK


def _describes_run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> bool:
    """Whether a switch says anything of a run."""
    return any(
        getattr(args, name) != parser.get_default(name) for name in vars(args) if name not in ("path", "json", "debug")
    )


def _resuming(args: argparse.Namespace, found: Found) -> Resuming:
    import os

    from dist_trainer.checkpoints.resuming import resuming
    from dist_trainer.cli import plan, train
    from dist_trainer.launch.hosts.facts import read_host_facts

    world = plan.find_world(args, read_host_facts(os.environ))
    return resuming(found, train.request_from(args), world_size=world.num_ranks)


def _verify(argv: list[str]) -> int:
    """0 if all is whole, else 2. Raises UserError."""
    args = build_verify_parser().parse(argv)

    from dist_trainer.checkpoints.standing import folders_at, standing_of
    from dist_trainer.checkpoints.verify import every_damage
    from dist_trainer.data.progress import byte_progress

    status = EXIT_OK
    for folder in folders_at(args.path):
        standing = standing_of(folder)
        index, damages = standing.index, list(standing.damages)
        num_bytes = 0
        if index is not None:
            num_bytes = index.num_bytes
            shown = sys.stderr.isatty() and num_bytes >= _LARGE_BYTES
            with byte_progress(printable(folder.name), num_bytes, enabled=shown) as advance:
                damages = list(every_damage(folder, index, on_read=advance))
        print(printable(f"{folder}: {'damaged' if damages else f'whole, {format_bytes(num_bytes)} read'}"))
        for damage in damages:
            print(printable(f"  {damage.file.name} {damage.problem}"))
            status = EXIT_USER_ERROR
    return status


def _diff(argv: list[str]) -> int:
    """0 if weights, states and position are the same, else 1. Raises UserError."""
    args = build_diff_parser().parse(argv)

    from dist_trainer.checkpoints.changed import differences
    from dist_trainer.checkpoints.damage import DamageError
    from dist_trainer.checkpoints.show import text
    from dist_trainer.checkpoints.standing import damaged, whole_at
    from dist_trainer.exchange.compare import compare, position_differences

    first, second = whole_at(args.a), whole_at(args.b)
    try:
        compared = compare(first, second)
    except DamageError as damage:
        raise damaged(damage) from damage
    positions = list(position_differences(first.index, second.index))
    is_same = compared.is_same and not positions
    lines = [f"A          {first.folder}", f"B          {second.folder}"]
    lines += [f"differs    {line}" for line in (*compared.not_comparable, *map(str, compared.differences))]
    lines += [f"dtype      {line}" for line in compared.other_dtypes]
    lines += [f"position   {line}" for line in positions]
    lines += [f"setting    B: {line}" for line in differences(first, second.index.made_by)]
    lines.append(
        f"{'same' if is_same else 'not same':<11}{compared.num_same} states of parameters agree"
        + ("" if compared.is_same else f", {len(compared.differences)} differ")
    )
    sys.stdout.write(text(lines))
    return EXIT_OK if is_same else EXIT_FAILURE


def _export(argv: list[str]) -> int:
    args = build_export_parser().parse(argv)

    from dist_trainer.checkpoints.damage import DamageError
    from dist_trainer.checkpoints.index import WEIGHT
    from dist_trainer.checkpoints.show import text
    from dist_trainer.checkpoints.standing import damaged, whole_at
    from dist_trainer.checkpoints.verify import every_damage
    from dist_trainer.data.info import TOKENIZER_FILE
    from dist_trainer.exchange.gpt2 import export

    found = whole_at(args.path)
    tokenizer = args.tokenizer
    if tokenizer is not None and tokenizer.is_dir():
        tokenizer /= TOKENIZER_FILE
    try:
        for damage in every_damage(found.folder, found.index, states={WEIGHT}):
            raise damage
        export(found, args.output, tokenizer=tokenizer)
    except DamageError as damage:
        raise damaged(damage) from damage
    lines = [f"{args.output}: the weights of {found.folder} for GPT2LMHeadModel.from_pretrained"]
    prepared = {data.path: data for data in found.index.made_by.data.values() if data.tokenizer is not None}
    if tokenizer is None and prepared:
        where = " or ".join(str(Path(path).parent / TOKENIZER_FILE) for path in prepared)
        lines.append(f"no tokenizer: export with --tokenizer {where} to have it there too")
    sys.stdout.write(text(lines))
    return EXIT_OK


def _import(argv: list[str]) -> int:
    args = build_import_parser().parse(argv)

    from dist_trainer.checkpoints.damage import DamageError
    from dist_trainer.checkpoints.show import text
    from dist_trainer.exchange.foreign import none_at, open_foreign, refused
    from dist_trainer.exchange.importing import write_checkpoint

    weights = open_foreign(args.path)
    if weights is None:
        raise none_at(args.path)
    if args.num_heads is not None:
        weights = weights.with_heads(args.num_heads)
    try:
        folder = write_checkpoint(weights, args.to)
    except DamageError as damage:
        raise refused(damage) from damage
    lines = [f"{folder}: the weights of {args.path}, {weights.said}"]
    lines += [f"notice     {notice}" for notice in weights.notices]
    lines.append(f"begin a run from them with --init-from {args.to} and the model's shape:")
    lines.append("  " + " ".join(f"--set model.{key}={value}" for key, value in vars(weights.shape).items()))
    sys.stdout.write(text(lines))
    return EXIT_OK


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
