"""Where the ranks go: from a hostfile, a SLURM allocation, or this host's own GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dist_trainer.cluster.hostfile import read_hostfile
from dist_trainer.cluster.slurm import allocated_topology
from dist_trainer.cluster.topology import Topology
from dist_trainer.errors import UserError
from dist_trainer.launch.plan import HostFacts

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
