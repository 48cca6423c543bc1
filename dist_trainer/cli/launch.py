"""The `launch` command: starts `train` on every rank, with whatever starts processes here."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dist_trainer.cli import train
from dist_trainer.cli.parser import Parser, positive_number
from dist_trainer.cluster.environments import LAUNCH_ID, LAUNCH_PROCESS, read_count
from dist_trainer.cluster.folder_lock import FolderLock
from dist_trainer.cluster.hostfile import has_byte_order_mark
from dist_trainer.cluster.process_table import started_ticks
from dist_trainer.cluster.topology import Topology
from dist_trainer.config.request import Request
from dist_trainer.config.run_dir import create_next_run_dir, create_run_dir, next_run_dir
from dist_trainer.encoding import print_script, printable
from dist_trainer.errors import EXIT_OK
from dist_trainer.launch.environment import named_env
from dist_trainer.launch.hosts.facts import read_host_facts, whose_mpirun
from dist_trainer.launch.hosts.network import is_own_address
from dist_trainer.launch.hosts.placement import (
    NUM_RANKS_WITHOUT_GPU,
    HostChoice,
    check_ssh,
    find_topology,
    parse_ranks_per_host,
    read_rendezvous,
)
from dist_trainer.launch.hosts.ports import first_free_port, planned_port
from dist_trainer.launch.launchers.choose import LAUNCHERS, build_plan, choose_launcher
from dist_trainer.launch.outcome import say
from dist_trainer.launch.plan import HostFacts, LaunchRequest
from dist_trainer.launch.run import (
    START_LIMIT_S,
    Prepared,
    require_launcher,
    run_beside,
    run_request,
    secret_for,
)
from dist_trainer.streams import outlive_readers

if TYPE_CHECKING:
    from dist_trainer.config.resolve import ResolvedRun
    from dist_trainer.memory.advice.preflight import Preflight

# These import torch before they start ranks: time enough to plan here. Under the others rank 0 plans as early.
_COME_UP_SLOWLY = ("torchrun", "deepspeed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The switches of `launch` itself; every other switch belongs to `train` and is passed on."""
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        help="default: srun inside a SLURM allocation, deepspeed with a hostfile, else torchrun",
    )
    parser.add_argument(
        "--nproc-per-node",
        "--nproc_per_node",
        metavar="N|auto",
        default="auto",
        help="ranks a host; auto (the default) takes the hostfile's slots, SLURM's tasks, or one a GPU, "
        f"and {NUM_RANKS_WITHOUT_GPU} where there is no GPU",
    )
    parser.add_argument(
        "--hostfile", metavar="FILE", help="lines 'host slots=N', as DeepSpeed has them; for mpirun also MPI's forms"
    )
    parser.add_argument("--include", metavar="SPEC", default="", help="use only these slots: node1:0,1@node2")
    parser.add_argument("--exclude", metavar="SPEC", default="", help="leave these slots out: node1:0")
    parser.add_argument(
        "--nnodes", metavar="N", type=int, help="with torchrun, started by hand on each of N hosts: see --rdzv-endpoint"
    )
    parser.add_argument(
        "--rdzv-endpoint", metavar="HOST:PORT", help="where these hosts meet; HOST is one of them, PORT + 1 free too"
    )
    parser.add_argument(
        "--rdzv-id",
        metavar="NAME",
        default="dist_trainer",
        help="keeps two such runs apart; 32 hexadecimal digits or more are the secret that their hosts share, "
        "else that is ~/.config/dist_trainer/secret",
    )
    parser.add_argument("--ssh", action="store_true", help="with torchrun and a hostfile: start it on all hosts by ssh")
    parser.add_argument(
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="give every rank this variable, on every host; may be said again",
    )
    parser.add_argument(
        "--start-limit",
        metavar="SECONDS",
        type=positive_number,
        default=START_LIMIT_S,
        help="name the hosts whose ranks have not started by then, and end (default %(default)g)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the command and start nothing")


def run(
    args: argparse.Namespace,
    train_arguments: list[str],
    *,
    run_dir: Path | None,
    train_request: Request | None,
    resume: str = "auto",
    init_from: Path | None = None,
    force: bool = False,
    module: str = "dist_trainer",
) -> int:
    """Prints the command (--dry-run), or runs it and returns its exit status. Raises UserError.

    `train_arguments` are passed on literally. `run_dir` is the folder that they name. If they name none it is None, and
    the next free folder is taken and named to `train`. `train_request` is what they ask for: it is checked for the
    number of ranks, together with the checkpoint that `resume` or `init_from` means, before anything is made or a rank
    is started. It is planned too, and a run that would not fit this host is not started, unless `force`. It is None if
    `module` is another program than ours; then `run_dir` is required.
    """
    environ = os.environ
    facts = read_host_facts(environ)
    launcher = args.launcher or choose_launcher(environ, args.hostfile)
    if launcher == "mpirun":
        facts = replace(facts, mpirun=whose_mpirun())
    choice = HostChoice(args.hostfile, args.include, args.exclude, parse_ranks_per_host(args.nproc_per_node))
    rendezvous = read_rendezvous(args.nnodes, args.rdzv_endpoint, args.rdzv_id, launcher=launcher)
    topology, is_filtered = find_topology(launcher, choice, facts)
    if launcher == "torchrun":
        check_ssh(args.ssh, topology, facts, rendezvous)
    told_port = read_count(environ, "MASTER_PORT")
    if args.ssh and rendezvous is not None:
        # With --ssh the hostfile names the hosts, and this process starts them: only the port is still needed.
        told_port, rendezvous = rendezvous.port, None
    request = LaunchRequest(
        arguments=("train", *train_arguments),
        topology=topology,
        master_port=told_port or 0,
        facts=facts,
        module=module,
        hostfile=args.hostfile,
        is_hostfile_marked=launcher == "deepspeed"
        and args.hostfile is not None
        and has_byte_order_mark(Path(args.hostfile)),
        is_filtered=is_filtered,
        env=named_env(args.env, environ),
        rendezvous=rendezvous,
    )

    def arguments_with(chosen_dir: Path) -> tuple[str, ...]:
        return request.arguments if run_dir else (*request.arguments, "--run-dir", str(chosen_dir))

    if args.dry_run:
        checked = check_files(train_request, request.num_ranks, resume=resume, run_dir=run_dir, init_from=init_from)
        if checked is not None:
            _say_beside_the_command(checked)
        next_dir = run_dir or next_run_dir(*names_of(train_request))
        port = told_port or planned_port(next_dir)
        shown = replace(request, arguments=arguments_with(next_dir), master_port=port)
        print_script(build_plan(launcher, shown).shell())
        return EXIT_OK
    require_launcher(launcher)
    secret = secret_for(launcher, request)
    if rendezvous is not None and not is_own_address(rendezvous.host):
        checked = check_files(train_request, request.num_ranks, resume=resume, run_dir=run_dir, init_from=init_from)
        return run_beside(request, secret, stop_within_s=_stop_within_s(checked))

    # The folder's lock has this id, by which ranks know that it is held by the launch that started them.
    launch_id = secrets.token_hex(8)
    # Their timelines begin with this process.
    of_launch = ((LAUNCH_ID, launch_id), (LAUNCH_PROCESS, f"{os.getpid()}:{started_ticks(os.getpid())}"))

    checked = None
    if not request.is_local:
        checked = check_files(train_request, request.num_ranks, resume=resume, run_dir=run_dir, init_from=init_from)

    def prepare() -> Prepared:
        nonlocal checked
        if request.is_local:
            # Done here, while the launcher comes up.
            checked = check_files(train_request, request.num_ranks, resume=resume, run_dir=run_dir, init_from=init_from)
            if checked is not None:
                from dist_trainer.launch.hosts.devices import check_async_io

                check_async_io(checked)
        elif rendezvous is None and launcher != "srun":
            # Imported only if needed: importing asyncio takes a third of the time in which a run on this host starts.
            from dist_trainer.launch.hosts.reach import check_hosts

            check_hosts(request, secret, is_chosen=choice.names_slots)
        planned = None
        if train_request is not None and request.is_local and launcher in _COME_UP_SLOWLY:
            planned = plan_here(train_request, topology, facts, force=force)
        if run_dir:
            create_run_dir(run_dir)
            chosen_dir = run_dir
        else:
            chosen_dir = create_next_run_dir(*names_of(train_request))
        held.enter_context(FolderLock(chosen_dir, "launch", launch_id=launch_id, say=say))
        if planned is not None:
            _say(planned, chosen_dir)
        return Prepared(chosen_dir, arguments_with(chosen_dir), _stop_within_s(checked))

    # The port is computed from the folder's path; as long as there is none, from this process's id.
    port = told_port or first_free_port(planned_port(run_dir or Path(str(os.getpid()))))
    with ExitStack() as held:
        return run_request(
            launcher,
            replace(request, master_port=port, env=(*request.env, *of_launch)),
            prepare,
            secret=secret,
            is_port_fixed=told_port is not None,
            start_limit_s=args.start_limit,
        )


def check_files(
    request: Request | None, num_ranks: int, *, resume: str, run_dir: Path | None, init_from: Path | None = None
) -> ResolvedRun | None:
    """The run, resolved for a device that supports everything; None if what is to run is not ours.

    Raises UserError for a mistake in either file or in what overrides them, for a checkpoint that is not whole or
    is another kind of run's, and for weights to begin from that are another model's.
    """
    if request is None:
        return None
    from dist_trainer.checkpoints.before_start import check_before_start

    resumed, resolved = check_before_start(request, world_size=num_ranks, resume=resume, run_dir=run_dir)
    if init_from is not None:
        from dist_trainer.exchange.initial import check_initial

        check_initial(init_from, resumed, resolved, asked_resume=resume)
    return resolved


def _stop_within_s(resolved: ResolvedRun | None) -> float | None:
    return None if resolved is None else resolved.run.checkpoints.stop_within_s


def _say_beside_the_command(resolved: ResolvedRun) -> None:
    """Prints what the run's first lines will say of its settings; on stderr, because a shell may read stdout."""
    lines = [*(f"filled     {one}" for one in resolved.filled), *(f"notice     {one}" for one in resolved.notices)]
    for line in lines:
        print(printable(line), file=sys.stderr)


def names_of(request: Request | None) -> tuple[str, str]:
    from dist_trainer.config.resolve import names

    assert request is not None, "what is not ours names its folder"
    return names(request)


def plan_here(request: Request, topology: Topology, facts: HostFacts, *, force: bool) -> Preflight:
    """Plans a run whose ranks are all on this host. (Any other is planned by its rank 0, which sees its own device.)

    Raises UserError if the run would not fit, unless `force`.
    """
    from dist_trainer.launch.hosts.devices import assumed_facts, host_memory_bytes, smallest_visible_gpu
    from dist_trainer.logs import quiet_deepspeed
    from dist_trainer.memory.advice.nearest import Setup
    from dist_trainer.memory.advice.outcome import HostMemory
    from dist_trainer.memory.advice.preflight import Case, preflight
    from dist_trainer.memory.planner.planner import PlannedDevice

    on_cpu = facts.num_gpus == 0
    device = PlannedDevice("cpu")
    if not on_cpu:
        gpu = smallest_visible_gpu(facts.environ)
        device = PlannedDevice("cuda", gpu.name, gpu.num_bytes) if gpu else PlannedDevice("cuda")
    num_ranks = topology.num_ranks
    setup = Setup(request, num_ranks, num_ranks, max_ranks_a_host=num_ranks if on_cpu else facts.num_gpus)
    host = HostMemory(host_memory_bytes(), num_ranks)
    with quiet_deepspeed():
        return preflight(Case(setup, assumed_facts(device.kind), device, host), force=force)


def _say(planned: Preflight, run_dir: Path) -> None:
    if planned.plan is not None:
        print(f"memory     {planned.line}")
        planned.write(run_dir)
        for notice in planned.notices:
            print(f"notice     {notice}")


def build_parser() -> Parser:
    parser = Parser("launch", "Start `train` on every rank. All other switches are those of `dist_trainer train`.")
    add_arguments(parser)
    return parser


def main(argv: list[str]) -> int:
    """Checks what was asked, as every rank will, then launches; returns the exit status. Raises UserError."""
    outlive_readers()
    parser = build_parser()
    args, train_arguments = parser.parse_known_args(argv)
    train_args = train.build_parser().parse(train_arguments, also_known=parser.option_strings())
    return run(
        args,
        train_arguments,
        run_dir=train_args.run_dir,
        train_request=train.request_from(train_args),
        resume=train_args.resume,
        init_from=train_args.init_from,
        force=train_args.force,
    )
