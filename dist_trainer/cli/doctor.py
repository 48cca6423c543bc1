"""The `doctor` command: what would keep a run from starting on these hosts, or slow it down."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dist_trainer.cli import train
from dist_trainer.cli.parser import Parser
from dist_trainer.cluster.environments import read_count
from dist_trainer.cluster.rank import port_from
from dist_trainer.cluster.slurm import in_allocation
from dist_trainer.cluster.topology import Topology
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.resolve import resolve
from dist_trainer.config.run_dir import RUNS_DIR
from dist_trainer.errors import EXIT_FAILURE, EXIT_OK, UserError
from dist_trainer.launch.hosts.facts import read_host_facts
from dist_trainer.launch.hosts.placement import HostChoice, find_topology, parse_ranks_per_host
from dist_trainer.launch.plan import HostFacts

if TYPE_CHECKING:
    from dist_trainer.doctor.examination import How, MeetingPort

# Where torchrun and DeepSpeed's launcher have their ranks meet, unless told otherwise.
_USUAL_PORT = 29500


def build_parser() -> Parser:
    parser = Parser(
        "doctor",
        "Look on every host for what would keep a run from starting, or slow it down. "
        f"Exits with {EXIT_FAILURE} when a check failed.",
    )
    train.add_what_to_train(parser)
    train.add_single_optimisations(parser)
    hosts = parser.add_argument_group("hosts (default: those of the SLURM allocation, or this one)")
    hosts.add_argument("--hostfile", metavar="FILE", help="lines 'host slots=N', as DeepSpeed has them")
    hosts.add_argument("--include", metavar="SPEC", default="", help="use only these slots: node1:0,1@node2")
    hosts.add_argument("--exclude", metavar="SPEC", default="", help="leave these slots out: node1:0")
    hosts.add_argument(
        "--nproc-per-node",
        "--nproc_per_node",
        metavar="N|auto",
        default="auto",
        help="ranks a host (default: auto, what `launch` would start)",
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path(RUNS_DIR),
        metavar="DIR",
        help="where the run's folder will be: the storage that is looked at (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the findings, and all that was found out, as JSON")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(argv: list[str]) -> int:
    """0 if no check failed, whatever the warnings; 1 if one did. Raises UserError."""
    args = build_parser().parse(argv)
    facts = read_host_facts(os.environ)
    choice = HostChoice(args.hostfile, args.include, args.exclude, parse_ranks_per_host(args.nproc_per_node))
    how, topology = _where(choice, facts)
    request = train.request_from(args)
    resolved = resolve(request, world_size=topology.num_ranks, device=ANY_DEVICE)

    from dist_trainer.doctor.examination import Task
    from dist_trainer.doctor.examine import examine
    from dist_trainer.doctor.judge import judge
    from dist_trainer.doctor.needs import needs_of
    from dist_trainer.doctor.show import dump, show

    task = Task(
        how=how,
        topology=topology,
        request=request,
        needs=needs_of(resolved, world_size=topology.num_ranks),
        port=_port(os.environ),
        folder=str(_folder(args.run_dir)),
        cwd=str(Path.cwd()),
        names_slots=choice.names_slots,
    )
    exam = examine(task)
    findings = judge(exam)
    if args.json:
        sys.stdout.write(dump(findings, exam))
    else:
        from rich.console import Console

        show(findings, exam, Console(highlight=False, width=max(100, shutil.get_terminal_size().columns)))
    return EXIT_FAILURE if any(finding.level == "fail" for finding in findings) else EXIT_OK


def _where(choice: HostChoice, facts: HostFacts) -> tuple[How, Topology]:
    """How the hosts are reached, and the hosts: those of --hostfile, else of the SLURM allocation, else this one.

    Raises UserError in an allocation without srun.
    """
    if choice.hostfile is None and in_allocation(facts.environ):
        if shutil.which("srun") is None:
            raise UserError(
                "this is a SLURM allocation, and srun is not installed",
                where="PATH",
                hint="look at its hosts from where srun is, or name them with --hostfile",
            )
        return "srun", find_topology("srun", choice, facts)[0]
    # No launcher is chosen yet: a hostfile may have any form.
    topology, _ = find_topology("torchrun" if choice.hostfile is None else "mpirun", choice, facts)
    return ("here" if topology.is_local(facts.hostname) else "ssh"), topology


def _port(environ: Mapping[str, str]) -> MeetingPort:
    from dist_trainer.doctor.examination import MeetingPort

    said = read_count(environ, "MASTER_PORT")
    if said:
        return MeetingPort(said, "MASTER_PORT")
    if in_allocation(environ):
        return MeetingPort(port_from(environ["SLURM_JOB_ID"]), f"of SLURM job {environ['SLURM_JOB_ID']}")
    return MeetingPort(_USUAL_PORT, None)


def _folder(run_dir: Path) -> Path:
    """The nearest folder that exists, `run_dir` or above it: the run's folder would be on its storage."""
    path = run_dir.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
