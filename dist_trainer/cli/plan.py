"""The `plan` command: how many bytes each rank will need, before anything runs."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from dist_trainer.cli import train
from dist_trainer.cli.parser import Parser, not_negative, positive
from dist_trainer.cli.progress import counting
from dist_trainer.config.adapt import DeviceFacts
from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.errors import EXIT_FAILURE, EXIT_OK, UserError
from dist_trainer.launch.hosts.devices import assumed_facts, host_memory_bytes, smallest_visible_gpu
from dist_trainer.launch.hosts.facts import read_host_facts
from dist_trainer.launch.hosts.placement import HostChoice, find_topology, parse_ranks_per_host
from dist_trainer.launch.launchers.choose import choose_launcher
from dist_trainer.launch.plan import HostFacts
from dist_trainer.logs import quiet_deepspeed
from dist_trainer.memory.advice import outcome, show
from dist_trainer.memory.advice.nearest import MOST_RANKS_A_HOST, Setup
from dist_trainer.memory.advice.preflight import Case, dearer_than_baseline, explain, suggest
from dist_trainer.memory.engines.settings import read_settings
from dist_trainer.memory.plan import Plan, dump_plan, needed
from dist_trainer.memory.planner.planner import PlannedDevice
from dist_trainer.units import counted, format_gb, parse_bytes


@dataclass(frozen=True)
class World:
    """How many ranks, how many of them share a host at most, and whether they are all on this one.

    `assumption` is a notice for the user, if nobody said how many and the number is an assumption.
    """

    num_ranks: int
    num_ranks_a_host: int
    is_this_host: bool
    assumption: str | None = None


def build_parser() -> Parser:
    parser = Parser("plan", "Say how many bytes each rank will need, without running anything.")
    train.add_what_to_train(parser)
    train.add_single_optimisations(parser)
    hosts = parser.add_argument_group("ranks and devices")
    add_ranks(hosts)
    hosts.add_argument("--gpu", metavar="NAME", help="the card to plan for, such as a100-40g")
    hosts.add_argument("--gpu-memory", type=_memory, metavar="SIZE", help="the memory of any other, such as 24GiB")
    hosts.add_argument("--host-memory", type=_memory, metavar="SIZE", help="the memory of one host, for offload")
    hosts.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="plan for GPUs (default), or for ranks on a CPU"
    )
    hosts.add_argument(
        "--rank", type=not_negative, metavar="N", help="plan this rank (default: the first and the last)"
    )
    fit = parser.add_argument_group("search")
    fit.add_argument(
        "--fit", action="store_true", help="find the settings that fit the GPU and the target, cheapest first"
    )
    fit.add_argument(
        "--global-batch", type=positive, metavar="N", help="sequences an optimizer step (default: the JSON's own)"
    )
    fit.add_argument("--write", type=Path, metavar="FILE", help="write the winner as a DeepSpeed JSON")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def add_ranks(hosts: argparse._ArgumentGroup) -> None:
    """The switches that `find_world` reads."""
    hosts.add_argument(
        "--nproc-per-node",
        "--nproc_per_node",
        metavar="N|auto",
        default="auto",
        help="ranks a host (default: auto, what `launch` would start here)",
    )
    hosts.add_argument("--nnodes", type=positive, metavar="N", help="hosts, where there is no hostfile (default: 1)")
    hosts.add_argument("--hostfile", metavar="FILE", help="lines 'host slots=N', as DeepSpeed has them")
    hosts.add_argument("--include", metavar="SPEC", default="", help="use only these slots: node1:0,1@node2")
    hosts.add_argument("--exclude", metavar="SPEC", default="", help="leave these slots out: node1:0")


def main(argv: list[str]) -> int:
    """Prints the plan. 0 when it fits and meets the target, as far as those are known; else 1. Raises UserError."""
    # A new trace may import DeepSpeed, whose log lines go to stdout.
    with quiet_deepspeed():
        return _plan(build_parser().parse(argv))


def _plan(args: argparse.Namespace) -> int:
    facts = read_host_facts(os.environ)
    world = find_world(args, facts)
    device = _device(args, world, facts)
    if args.rank is not None and args.rank >= world.num_ranks:
        raise UserError(
            "there is no such rank", where="--rank", found=args.rank, expected=f"0 to {world.num_ranks - 1}"
        )
    case = _case(args, world, device)
    resolved = case.resolved()
    if args.fit:
        return _fit(args, case, resolved)
    for name, value in (("--global-batch", args.global_batch), ("--write", args.write)):
        if value is not None:
            raise UserError("goes with --fit", where="command line", found=name, hint="add --fit, or leave it out")
    ranks = None if args.rank is None else (args.rank,)
    plan = case.plan(resolved, ranks)
    status = EXIT_OK if outcome.is_good(plan, case.host) else EXIT_FAILURE
    notices = [*filter(None, [world.assumption]), *resolved.notices]
    advice = [*_inversion(case, resolved, plan), *_advice(case, resolved, plan)]
    if args.json:
        sys.stdout.write(dump_plan(plan, filled=resolved.filled, notices=notices, advice=advice))
        return status
    settings = read_settings(resolved.deepspeed, cuda=device.kind == "cuda")
    text = show.render(
        plan,
        host=case.host,
        is_pinned=settings.pins_optimizer or settings.pins_param,
        notices=notices,
        filled=[str(one) for one in resolved.filled],
        advice=advice,
    )
    sys.stdout.write(text)
    return status


def _case(args: argparse.Namespace, world: World, device: PlannedDevice) -> Case:
    may_grow = args.hostfile is None and device.kind == "cuda"
    setup = Setup(
        train.request_from(args),
        world.num_ranks,
        world.num_ranks_a_host,
        max(MOST_RANKS_A_HOST, world.num_ranks_a_host) if may_grow else world.num_ranks_a_host,
    )
    return Case(setup, _facts(args, device), device, _host(args, world))


def _facts(args: argparse.Namespace, device: PlannedDevice) -> DeviceFacts:
    from dist_trainer.memory.gpus import has_bf16

    facts = assumed_facts(device.kind)
    if device.kind == "cuda" and not has_bf16(args.gpu):
        return replace(facts, supports_bf16=False, name=args.gpu)
    return facts


def _inversion(case: Case, resolved: ResolvedRun, plan: Plan) -> list[str]:
    line = dearer_than_baseline(case, resolved, plan)
    return [f"baseline   {line}"] if line else []


def _advice(case: Case, resolved: ResolvedRun, plan: Plan) -> list[str]:
    """Why the plan is over the device's memory or the target, and the nearest change that is over neither."""
    limits = {"the GPU's memory": outcome.device_standing(plan), "the target": outcome.target_standing(plan)}
    over = {name: standing for name, standing in limits.items() if standing is not None and standing.state == "over"}
    if not over:
        return []
    name, standing = min(over.items(), key=lambda item: item[1].limit_bytes)
    why = explain(resolved, plan, limit_bytes=standing.limit_bytes, limit_name=name)
    lines = [f"{'why' if number == 0 else '':<11}{line}" for number, line in enumerate(why)]
    suggestion = suggest(case, resolved, plan, outcome.is_good)
    if suggestion is None:
        return [*lines, "nearest    none of the changes tried here is enough; --fit searches further"]
    figure = needed(suggestion.plan.worst).num_bytes
    told = [
        f"{'nearest' if number == 0 else '    and':<11}{change.what} ({change.cost})"
        for number, change in enumerate(suggestion.changes)
    ]
    return [*lines, *told, f"{'':<11}{format_gb(figure)} with: {suggestion.typed}"]


def _fit(args: argparse.Namespace, case: Case, resolved: ResolvedRun) -> int:
    """Prints the search. 0 when something fits, else 1."""
    from dist_trainer.memory.fit import search as fit
    from dist_trainer.memory.fit import show as fit_show
    from dist_trainer.memory.gpus import has_bf16

    if case.device.kind == "cpu":
        raise UserError("--fit searches for a GPU", where="--device", found="cpu", hint="leave --device out")
    setup, global_batch = case.setup, args.global_batch or resolved.train_batch_size
    request = fit.at_batch(setup.request, global_batch, setup.num_ranks)
    with counting("settings planned", enabled=sys.stderr.isatty()) as on_plan:
        found = fit.search(
            replace(case, setup=replace(setup, request=request)).resolved(),
            world_size=setup.num_ranks,
            device=case.device,
            global_batch=global_batch,
            host_bytes=case.host.num_bytes if case.host else None,
            ranks_a_host=setup.num_ranks_a_host,
            has_bf16=has_bf16(args.gpu),
            switches=setup.request.switches,
            on_plan=on_plan,
        )
    sys.stdout.write(fit_show.render(found))
    if found.winner is None:
        return EXIT_FAILURE
    if args.write is not None:
        fit.write_config(found.winner, args.write)
        print(f"\nwritten    {args.write}")
    return EXIT_OK


def find_world(args: argparse.Namespace, facts: HostFacts) -> World:
    """The ranks that `launch` would start with these switches; --nproc-per-node N needs no GPU to be there.

    Raises UserError if the switches contradict each other or name no such hosts.
    """
    asked = parse_ranks_per_host(args.nproc_per_node)
    num_hosts = args.nnodes or 1
    if args.hostfile is not None:
        if args.nnodes is not None:
            raise UserError(
                "the hostfile says how many hosts there are",
                where="--nnodes",
                found=args.nnodes,
                hint="leave one of --hostfile and --nnodes out",
            )
    elif asked is not None and not args.include and not args.exclude:
        return World(num_hosts * asked, asked, is_this_host=num_hosts == 1)
    # No launcher is chosen yet: a hostfile may have any form.
    launcher = choose_launcher(facts.environ, args.hostfile) if args.hostfile is None else "mpirun"
    if args.nnodes is not None:
        launcher = "torchrun"
    choice = HostChoice(args.hostfile, args.include, args.exclude, asked)
    topology, _ = find_topology(launcher, choice, facts)
    most = max(host.num_slots for host in topology.hosts)
    assumption = None
    if asked is None and args.hostfile is None and launcher != "srun" and facts.num_gpus == 0:
        assumption = (
            f"world size {num_hosts * topology.num_ranks}: no GPU here and no --nproc-per-node, "
            f"so {counted(most, 'rank')} a host, as `launch` would start"
        )
    return World(num_hosts * topology.num_ranks, most, num_hosts == 1 and topology.is_local(facts.hostname), assumption)


def _device(args: argparse.Namespace, world: World, facts: HostFacts) -> PlannedDevice:
    if args.gpu is not None and args.gpu_memory is not None:
        raise UserError(
            "two answers to how much memory the GPU has",
            where="--gpu-memory",
            found=f"--gpu {args.gpu}",
            hint="leave one of --gpu and --gpu-memory out",
        )
    if args.device == "cpu":
        return PlannedDevice("cpu")
    if args.gpu is not None:
        from dist_trainer.memory.gpus import find_gpu

        name, num_bytes = find_gpu(args.gpu)
        return PlannedDevice("cuda", name, num_bytes)
    if args.gpu_memory is not None:
        return PlannedDevice("cuda", None, args.gpu_memory)
    if world.is_this_host and facts.num_gpus:
        found = smallest_visible_gpu(facts.environ)
        if found is not None:
            return PlannedDevice("cuda", found.name, found.num_bytes)
    return PlannedDevice("cuda")


def _host(args: argparse.Namespace, world: World) -> outcome.HostMemory | None:
    """--host-memory, else this host's memory if the ranks are on it and on its own GPUs, else None."""
    num_bytes = args.host_memory
    if num_bytes is None:
        if not world.is_this_host or args.gpu is not None or args.gpu_memory is not None:
            return None
        num_bytes = host_memory_bytes()
    return outcome.HostMemory(num_bytes, world.num_ranks_a_host)


def _memory(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
