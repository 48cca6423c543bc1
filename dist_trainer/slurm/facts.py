"""The cluster's partitions and nodes, as `scontrol` shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dist_trainer.errors import UserError
from dist_trainer.slurm.commands import ask
from dist_trainer.slurm.notation import Gpus, parse_gres, parse_time_s, records_of
from dist_trainer.units import MIB, whole_number

_NOT_UP = {"DOWN", "DRAIN", "DRAINED", "DRAINING", "ERROR", "FAIL", "FAILING", "MAINT", "NO_RESPOND", "UNKNOWN"}


@dataclass(frozen=True)
class Partition:
    """No limit: `max_nodes` None, `max_time_s` infinity. `default_time_s` None: the default is `max_time_s`."""

    name: str
    is_default: bool
    is_up: bool
    max_time_s: float
    default_time_s: float | None
    max_nodes: int | None
    limits_memory: bool


@dataclass(frozen=True)
class Node:
    """`num_cpus`: those that jobs may use."""

    name: str
    partitions: tuple[str, ...]
    num_cpus: int
    memory_bytes: int
    gpus: Gpus
    state: str

    @property
    def is_up(self) -> bool:
        return not self.state.endswith("*") and not set(re.split(r"[+*]", self.state)) & _NOT_UP


@dataclass(frozen=True)
class Cluster:
    partitions: tuple[Partition, ...]
    nodes: tuple[Node, ...]

    def partition(self, name: str) -> Partition | None:
        return next((partition for partition in self.partitions if partition.name == name), None)

    @property
    def default_partition(self) -> Partition | None:
        return next((partition for partition in self.partitions if partition.is_default), None)


def read_cluster(environ: Mapping[str, str]) -> Cluster:
    """Asks SLURM. Raises UserError if it does not answer."""
    texts = []
    for kind in ("partition", "node"):
        answer = ask(("scontrol", "show", "--all", "--oneliner", kind), environ)
        if answer.status != 0:
            raise UserError(
                "SLURM does not say what there is in the cluster.",
                where=f"scontrol show {kind}",
                found=answer.err or None,
                hint="look with `scontrol ping` whether its controller is up",
            )
        texts.append(answer.out)
    return parse_cluster(*texts)


def parse_cluster(partitions: str, nodes: str) -> Cluster:
    """From the output of `scontrol show --oneliner` for partitions and for nodes. Raises UserError."""
    try:
        return Cluster(
            tuple(_partition(fields) for fields in records_of(partitions, "PartitionName")),
            tuple(_node(fields) for fields in records_of(nodes, "NodeName")),
        )
    except ValueError as error:
        raise UserError(
            "What SLURM says of the cluster is not understood.", where="scontrol", found=str(error)
        ) from error


def _partition(fields: Mapping[str, str]) -> Partition:
    default = parse_time_s(fields.get("DefaultTime", "NONE"))
    most = fields.get("MaxNodes", "UNLIMITED")
    limits = (fields.get(name, "UNLIMITED") for name in ("MaxMemPerNode", "MaxMemPerCPU"))
    return Partition(
        name=fields["PartitionName"],
        is_default=fields.get("Default") == "YES",
        is_up=fields.get("State") == "UP",
        max_time_s=parse_time_s(fields.get("MaxTime", "UNLIMITED")),
        default_time_s=None if math.isinf(default) else default,
        max_nodes=whole_number(most),
        limits_memory=any(limit != "UNLIMITED" for limit in limits),
    )


def _node(fields: Mapping[str, str]) -> Node:
    return Node(
        name=fields["NodeName"],
        partitions=tuple(name for name in fields.get("Partitions", "").split(",") if name),
        num_cpus=_number(fields, "CPUEfctv") or _number(fields, "CPUTot"),
        memory_bytes=_number(fields, "RealMemory") * MIB,
        gpus=parse_gres(fields.get("Gres", "")),
        state=fields.get("State", "UNKNOWN"),
    )


def _number(fields: Mapping[str, str], name: str) -> int:
    """The field as a whole number, 0 if it is missing. Raises ValueError if it is no number."""
    number = whole_number(fields.get(name) or "0")
    if number is None:
        raise ValueError(f"{name}={fields[name]} is not a number")
    return number
