"""Where the ranks go: from a hostfile, a SLURM allocation, or this host's own GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dist_trainer.cluster.hostfile import read_hostfile
from dist_trainer.cluster.rank import LAST_PORT
from dist_trainer.cluster.slurm import allocated_topology
from dist_trainer.cluster.topology import Topology
from dist_trainer.errors import UserError
from dist_trainer.launch.plan import HostFacts, Rendezvous

NUM_RANKS_WITHOUT_GPU = 2


@dataclass(frozen=True)
class HostChoice:
    """What the user said about hosts. `num_ranks_per_host` None means: find out."""

    hostfile: str | None = None
    include: str = ""
    exclude: str = ""
    num_ranks_per_host: int | None = None


def parse_ranks_per_host(text: str) -> int | None:
    """'4' -> 4, 'auto' -> None. Raises UserError for anything else."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UserError(
            "This is not a number of ranks.", where="--nproc-per-node", found=text, expected="auto, or 1 or more"
        )
    return int(text)


def find_topology(launcher: str, choice: HostChoice, facts: HostFacts) -> tuple[Topology, bool]:
    """The hosts and slots to use, and whether they are fewer than the hostfile has. Raises UserError."""
    if launcher == "srun":
        _refuse_hosts_under_slurm(choice)
        return allocated_topology(facts.environ, choice.num_ranks_per_host), False
    if choice.hostfile is None:
        whole = _this_host(choice, facts)
    else:
        whole = read_hostfile(Path(choice.hostfile))
    chosen = whole.filter(include=choice.include, exclude=choice.exclude)
    if choice.num_ranks_per_host is not None:
        chosen = chosen.first_slots(choice.num_ranks_per_host)
    return chosen, chosen != whole


def read_rendezvous(num_hosts: int | None, endpoint: str | None, job_id: str, *, launcher: str) -> Rendezvous | None:
    """--nnodes and --rdzv-endpoint, which come together and with torchrun. Raises UserError."""
    if num_hosts is None and endpoint is None:
        return None
    if launcher != "torchrun":
        raise UserError(
            "Only torchrun is started by hand on each host.",
            where="--nnodes, --rdzv-endpoint",
            found=f"--launcher {launcher}",
            hint="add --launcher torchrun, or leave --nnodes and --rdzv-endpoint out",
        )
    if num_hosts is None or endpoint is None or num_hosts < 1:
        raise UserError(
            "A run that is started by hand on each host needs their number and where they meet.",
            where="--nnodes, --rdzv-endpoint",
            found=f"--nnodes {num_hosts}, --rdzv-endpoint {endpoint}",
            expected="--nnodes 2 --rdzv-endpoint node1:29500, the same on every host",
        )
    host, _, port = endpoint.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 1 <= int(port) < LAST_PORT):
        raise UserError(
            "This is not a place to meet at.",
            where="--rdzv-endpoint",
            found=endpoint,
            expected=f"HOST:PORT with a port from 1 to {LAST_PORT - 1}, such as node1:29500",
        )
    return Rendezvous(num_hosts, host, int(port), job_id)


def check_ssh(wants_ssh: bool, topology: Topology, facts: HostFacts, rendezvous: Rendezvous | None) -> None:
    """Raises UserError where torchrun is to run on other hosts and nothing says how it comes there."""
    is_local = topology.is_local(facts.hostname)
    if not is_local and not wants_ssh:
        raise UserError(
            "torchrun has to be started on every host.",
            where="--hostfile",
            found=", ".join(host.name for host in topology.hosts),
            hint="add --ssh, or run the command on each host with --nnodes and --rdzv-endpoint",
        )
    if wants_ssh and rendezvous is not None:
        raise UserError(
            "With --ssh one command starts all hosts, with --rdzv-endpoint each host is started by hand.",
            where="--ssh",
            hint="name the hosts with --hostfile and leave --nnodes and --rdzv-endpoint out, or leave --ssh out",
        )


def _this_host(choice: HostChoice, facts: HostFacts) -> Topology:
    asked = choice.num_ranks_per_host
    if facts.num_gpus == 0:
        return Topology.of_this_host(asked or NUM_RANKS_WITHOUT_GPU)
    if asked is not None and asked > facts.num_gpus:
        raise UserError(
            f"{asked} ranks need {asked} GPUs.",
            where="--nproc-per-node",
            found=f"{facts.num_gpus} GPUs that can be seen",
            hint="ask for fewer ranks, or see CUDA_VISIBLE_DEVICES",
        )
    return Topology.of_this_host(facts.num_gpus)


def _refuse_hosts_under_slurm(choice: HostChoice) -> None:
    for switch, value in (
        ("--hostfile", choice.hostfile),
        ("--include", choice.include),
        ("--exclude", choice.exclude),
    ):
        if value:
            raise UserError(
                "Under srun the allocation says which hosts there are.",
                where=switch,
                found=value,
                hint=f"leave {switch} out, or name another --launcher",
            )
