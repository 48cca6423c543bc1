"""Which hosts and slots get the ranks: from a hostfile, a SLURM allocation, or this host's GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dist_trainer.cluster.hostfile import read_hostfile
from dist_trainer.cluster.rank import LAST_PORT
from dist_trainer.cluster.slurm import allocated_topology
from dist_trainer.cluster.topology import Host, Topology, is_own_name
from dist_trainer.errors import UserError
from dist_trainer.launch.plan import HostFacts, Rendezvous
from dist_trainer.units import counted, whole_number

NUM_RANKS_WITHOUT_GPU = 2
SLOTS_HINT = "let slots= say how many GPUs a host has, and take part of them with --include 'node1:0,1'"


@dataclass(frozen=True)
class HostChoice:
    """What the user said about hosts. `num_ranks_per_host` None: as many as there are slots or GPUs."""

    hostfile: str | None = None
    include: str = ""
    exclude: str = ""
    num_ranks_per_host: int | None = None

    @property
    def names_slots(self) -> bool:
        """Whether the user said which slots to use, or how many."""
        return bool(self.include or self.exclude or self.num_ranks_per_host)


def parse_ranks_per_host(text: str) -> int | None:
    """'4' -> 4, 'auto' -> None. Raises UserError for anything else."""
    if text == "auto":
        return None
    count = whole_number(text)
    if not count:
        raise UserError(
            "This is not a number of ranks.", where="--nproc-per-node", found=text, expected="auto, or 1 or more"
        )
    return count


def find_topology(launcher: str, choice: HostChoice, facts: HostFacts) -> tuple[Topology, bool]:
    """(hosts and slots to use, whether these are fewer than in the hostfile). Raises UserError."""
    if launcher == "srun":
        _refuse_hosts_under_slurm(choice)
        return allocated_topology(facts.environ, choice.num_ranks_per_host), False
    if choice.hostfile is None:
        whole = _this_host(choice, facts)
    else:
        whole = read_hostfile(Path(choice.hostfile), "mpi" if launcher == "mpirun" else "deepspeed")
        _check_own_gpus(whole, choice, facts)
    chosen = whole.filter(include=choice.include, exclude=choice.exclude)
    if choice.num_ranks_per_host is not None:
        chosen = chosen.first_slots(choice.num_ranks_per_host)
    return chosen, chosen != whole


def read_rendezvous(num_hosts: int | None, endpoint: str | None, job_id: str, *, launcher: str) -> Rendezvous | None:
    """From --nnodes and --rdzv-endpoint, which need each other and torchrun. Raises UserError."""
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
    if not (host and 1 <= (whole_number(port) or 0) < LAST_PORT):
        raise UserError(
            "This is not a place to meet at.",
            where="--rdzv-endpoint",
            found=endpoint,
            expected=f"HOST:PORT with a port from 1 to {LAST_PORT - 1}, such as node1:29500",
        )
    return Rendezvous(num_hosts, host, int(port), job_id)


def check_ssh(wants_ssh: bool, topology: Topology, facts: HostFacts, rendezvous: Rendezvous | None) -> None:
    """Raises UserError if torchrun is to run on other hosts but nothing says how it gets there, or if what names the
    hosts contradicts --ssh.
    """
    is_local = topology.is_local(facts.hostname)
    if not is_local and not wants_ssh:
        raise UserError(
            "torchrun has to be started on every host.",
            where="--hostfile",
            found=", ".join(host.name for host in topology.hosts),
            hint="add --ssh, or run the command on each host with --nnodes and --rdzv-endpoint",
        )
    if wants_ssh and rendezvous is not None:
        _check_meeting(rendezvous, topology)


def gpu_trouble(host: Host, num_gpus: int, *, is_chosen: bool) -> str | None:
    """What is wrong with the slots of a host that has `num_gpus` GPUs, or None. `is_chosen`: the user named some slots.

    A host without any GPU trains on its CPU.
    """
    if 0 < num_gpus <= host.slots[-1]:
        return f"it has {_gpus(num_gpus)}, and slot {host.slots[-1]} needs {host.slots[-1] + 1}"
    if num_gpus > host.num_slots and not is_chosen:
        return f"it has {_gpus(num_gpus)}, and slots={host.num_slots}"
    return None


def _gpus(count: int) -> str:
    return counted(count, "GPU")


def _check_own_gpus(whole: Topology, choice: HostChoice, facts: HostFacts) -> None:
    for host in whole.hosts:
        if is_own_name(host.name, facts.hostname):
            trouble = gpu_trouble(host, facts.num_gpus, is_chosen=choice.names_slots)
            if trouble:
                raise UserError(
                    f"The slots of {host.name} are not its GPUs.", where=host.place, found=trouble, hint=SLOTS_HINT
                )


def _check_meeting(rendezvous: Rendezvous, topology: Topology) -> None:
    """With --ssh the hostfile names the hosts; --nnodes and --rdzv-endpoint must agree with it."""
    names = [host.name for host in topology.hosts]
    if rendezvous.num_hosts != len(names):
        raise UserError(
            "--nnodes and the hosts that --ssh is to start are not the same number.",
            where="--nnodes",
            found=rendezvous.num_hosts,
            expected=f"{len(names)}: {', '.join(names)}",
            hint="name the hosts with --hostfile, --include or --exclude, and leave --nnodes out",
        )
    if rendezvous.host != names[0]:
        raise UserError(
            "Rank 0 is on the first host of the hostfile, and the ranks meet there.",
            where="--rdzv-endpoint",
            found=rendezvous.endpoint,
            expected=f"{names[0]}:{rendezvous.port}",
            hint=f"name {names[0]}, put another host first in the hostfile, or leave --rdzv-endpoint out",
        )


def _this_host(choice: HostChoice, facts: HostFacts) -> Topology:
    asked = choice.num_ranks_per_host
    if facts.num_gpus == 0:
        return Topology.of_this_host(asked or NUM_RANKS_WITHOUT_GPU)
    if asked is not None and asked > facts.num_gpus:
        raise UserError(
            f"{counted(asked, 'rank')} need {counted(asked, 'GPU')}.",
            where="--nproc-per-node",
            found=f"{counted(facts.num_gpus, 'GPU')} that can be seen",
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
