"""A job checked against the cluster: whether it can ever start there, and what resources a rank gets."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from dist_trainer.errors import UserError
from dist_trainer.slurm.facts import Cluster, Node, Partition
from dist_trainer.slurm.job_request import JobRequest, Layout, memory_bytes, named_nodes, time_limit_s
from dist_trainer.slurm.notation import format_time


@dataclass(frozen=True)
class Checked:
    """A layout completed from the cluster's facts. `time_s`: the time limit in force, None if not known."""

    layout: Layout
    time_s: float | None
    notices: tuple[str, ...]


def check(request: JobRequest, layout: Layout, cluster: Cluster | None) -> Checked:
    """Checks the job against the cluster, if that is known, and fills in the CPUs per rank.

    Raises UserError for a job that could never start, also if SLURM would accept it and leave it pending forever.
    """
    asked_s = None if request.time is None else time_limit_s(request.time)
    if cluster is None:
        return Checked(layout, asked_s, ())
    partitions = _partitions(request, cluster)
    for partition in partitions:
        _check_limits(request, layout, partition, asked_s)
    names = {partition.name for partition in partitions}
    there = [node for node in cluster.nodes if names & set(node.partitions)]
    fitting = _fitting(request, layout, there)
    _require_enough(request, layout, there, fitting)
    notices = [
        f"partition {partition.name} is not up: the job waits until it is"
        for partition in partitions
        if not partition.is_up
    ]
    num_up = sum(node.is_up for node in fitting)
    needed = layout.num_nodes or 1
    if num_up < needed:
        are = "is" if num_up == 1 else "are"
        notices.append(f"{num_up} of the nodes that fit {are} up, and the job needs {needed}: it waits for others")
    if request.time is None and partitions:
        limits = {partition.default_time_s or partition.max_time_s for partition in partitions}
        asked_s = min(limits)
        where = f"partition {partitions[0].name}" if len(partitions) == 1 else "the partitions"
        notices.append(f"no --time: the limit of {where} holds, {format_time(asked_s)}")
    return Checked(_with_shares(request, layout, partitions, fitting), asked_s, tuple(notices))


def _partitions(request: JobRequest, cluster: Cluster) -> list[Partition]:
    if request.partition is None:
        default = cluster.default_partition
        if default is None:
            raise UserError(
                "This cluster has no default partition.",
                where="--partition",
                expected=f"of {', '.join(partition.name for partition in cluster.partitions)}",
            )
        return [default]
    known = [partition.name for partition in cluster.partitions]
    found = []
    for name in request.partition.split(","):
        partition = cluster.partition(name)
        if partition is None:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                "There is no such partition.",
                where="--partition",
                found=name,
                expected=f"of {', '.join(known)}",
                hint=f"did you mean {near[0]}?" if near else None,
            )
        found.append(partition)
    return found


def _check_limits(request: JobRequest, layout: Layout, partition: Partition, asked_s: float | None) -> None:
    if asked_s is not None and asked_s > partition.max_time_s:
        raise UserError(
            f"Partition {partition.name} lets no job run that long: this one would wait for ever.",
            where="--time",
            found=request.time,
            expected=f"at most {format_time(partition.max_time_s)}",
            hint="ask for less: a requeued job goes on from its newest checkpoint",
        )
    if partition.max_nodes is not None and (layout.num_nodes or 1) > partition.max_nodes:
        raise UserError(
            f"Partition {partition.name} gives no job so many nodes: this one would wait for ever.",
            where="--nodes",
            found=layout.num_nodes,
            expected=f"at most {partition.max_nodes}",
        )


def _fitting(request: JobRequest, layout: Layout, there: Sequence[Node]) -> list[Node]:
    """The nodes on which this job, or a part of it, could run."""
    needed_bytes = memory_bytes(request.memory)
    cpus = (layout.cpus_per_rank or 1) * (layout.ranks_per_node or 1)
    named = set(named_nodes(request))
    # If --nodelist names too few nodes, SLURM adds others.
    only_named = bool(named) and (layout.num_nodes is None or layout.num_nodes <= len(named))
    fitting = []
    for node in there:
        if only_named and node.name not in named:
            continue
        has_gpus = layout.gpus_per_node is None or node.gpus.holds(layout.gpus_per_node)
        if has_gpus and node.num_cpus >= cpus and node.memory_bytes >= needed_bytes:
            fitting.append(node)
    return fitting


def _require_enough(request: JobRequest, layout: Layout, there: Sequence[Node], fitting: Sequence[Node]) -> None:
    if layout.num_nodes is not None and len(fitting) < layout.num_nodes:
        raise UserError(
            f"The job is for {layout.num_nodes} nodes, and {len(fitting)} fit.",
            where="--nodes",
            found=layout.num_nodes,
            expected=f"nodes with {_wanted(request, layout)}; there are: {describe(there)}",
            hint="ask for fewer nodes or less of each; for nodes that differ: --ntasks N --gpus-per-task 1",
        )
    if layout.ranks_per_node is None:
        each = [node.gpus.count if layout.gpus_per_node else node.num_cpus for node in fitting]
        if sum(each) < layout.num_ranks:
            what = "GPUs" if layout.gpus_per_node else "CPUs"
            raise UserError(
                f"{layout.num_ranks} ranks are more than the {what} of all nodes that fit.",
                where="--ntasks",
                found=layout.num_ranks,
                expected=f"at most {sum(each)}; there are: {describe(there)}",
            )


def _wanted(request: JobRequest, layout: Layout) -> str:
    parts = [str(layout.gpus_per_node) if layout.gpus_per_node else f"{layout.ranks_per_node or 1} CPUs"]
    if request.cpus_per_task is not None:
        parts.append(f"{request.cpus_per_task * (layout.ranks_per_node or 1)} CPUs")
    if request.memory not in (None, "0"):
        parts.append(f"--mem {request.memory}")
    if request.nodelist is not None:
        parts.append(f"of {request.nodelist}")
    return ", ".join(parts)


def describe(nodes: Sequence[Node]) -> str:
    """Counts nodes by what they have: '4 with 8 x a100, 96 CPUs; 2 with no GPU, 32 CPUs'."""
    kinds: dict[str, int] = {}
    for node in nodes:
        kind = f"{node.gpus}, {node.num_cpus} CPUs"
        kinds[kind] = kinds.get(kind, 0) + 1
    return "; ".join(f"{count} with {kind}" for kind, count in kinds.items()) or "none"


def _with_shares(
    request: JobRequest, layout: Layout, partitions: Sequence[Partition], fitting: Sequence[Node]
) -> Layout:
    """Gives each rank its GPU's share of the node's CPUs: SLURM's default of one CPU per task starves data loaders."""
    gpus = layout.gpus_per_node
    if gpus is None or not fitting:
        return layout
    share = min(node.num_cpus // node.gpus.count for node in fitting)
    is_whole = layout.ranks_per_node is not None and all(node.gpus.count == gpus.count for node in fitting)
    return Layout(
        layout.num_nodes,
        layout.ranks_per_node,
        layout.num_ranks,
        gpus,
        request.cpus_per_task or max(1, share),
        is_whole and not any(partition.limits_memory for partition in partitions),
    )
