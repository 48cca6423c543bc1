"""What is asked of SLURM for a run, and what follows from it: ranks, CPUs a rank, and whether it can ever start."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dist_trainer.cluster.nodelist import expand_nodelist
from dist_trainer.errors import UserError
from dist_trainer.slurm.cadence import MAX_SIGNAL_S
from dist_trainer.slurm.facts import Cluster, Node, Partition
from dist_trainer.slurm.notation import (
    Gpus,
    format_time,
    parse_gpu_counts,
    parse_gres,
    parse_memory_bytes,
    parse_time_s,
)

Launcher = Literal["srun", "torchrun"]
GpuOption = Literal["gpus-per-node", "gres", "gpus-per-task"]


@dataclass(frozen=True)
class GpuRequest:
    """The option by which GPUs are asked for, and its value as the user wrote it."""

    option: GpuOption
    text: str

    @property
    def gpus(self) -> Gpus:
        """A node's, or with --gpus-per-task a task's. Raises UserError when there is none in the text."""
        try:
            gpus = parse_gres(self.text) if self.option == "gres" else parse_gpu_counts(self.text)
        except ValueError as error:
            raise UserError(str(error), where=f"--{self.option}", found=self.text) from error
        if gpus.count < 1:
            raise UserError(
                "This asks for no GPU.",
                where=f"--{self.option}",
                found=self.text,
                hint="leave it out, and say with --ntasks-per-node how many ranks a node has",
            )
        return gpus


@dataclass(frozen=True)
class JobRequest:
    """What was asked. None is what was not said; `options` are further options of sbatch, as NAME or NAME=VALUE.

    `signal_s` is how long before its end the job gets USR1; it has no meaning where the job is not requeued.
    """

    launcher: Launcher = "srun"
    nodes: int | None = None
    gpus: GpuRequest | None = None
    tasks_per_node: int | None = None
    tasks: int | None = None
    cpus_per_task: int | None = None
    memory: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    nodelist: str | None = None
    array: str | None = None
    signal_s: int | None = None
    requeues: bool = True
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Where the ranks go. `num_nodes` and `ranks_per_node` are None where SLURM spreads the ranks as it can.

    `cpus_per_rank` is None where nothing says it. `has_whole_nodes`: all GPUs of each node are asked for.
    """

    num_nodes: int | None
    ranks_per_node: int | None
    num_ranks: int
    gpus_per_node: Gpus | None
    cpus_per_rank: int | None = None
    has_whole_nodes: bool = False


@dataclass(frozen=True)
class Checked:
    """A layout with what was learnt from the cluster. `time_s` is the limit that holds, None where it is not known."""

    layout: Layout
    time_s: float | None
    notices: tuple[str, ...]


def lay_out(request: JobRequest) -> Layout:
    """Raises UserError for what contradicts itself, or says nothing of the number of ranks."""
    _check_signal(request)
    num_nodes = request.nodes
    if request.nodelist is not None:
        named = expand_nodelist(request.nodelist, where="--nodelist")
        if num_nodes is not None and len(named) > num_nodes:
            raise UserError(
                f"--nodelist names {len(named)} nodes, and the job is for {num_nodes}.",
                where="--nodes",
                found=num_nodes,
                hint="leave --nodes out, or name fewer nodes",
            )
        num_nodes = num_nodes or len(named)
    if request.tasks is not None:
        return _spread_ranks(request, num_nodes)
    num_nodes = num_nodes or 1
    ranks, gpus = _ranks_per_node(request)
    return Layout(num_nodes, ranks, num_nodes * ranks, gpus, request.cpus_per_task)


def _check_signal(request: JobRequest) -> None:
    time_s = math.inf if request.time is None else _time_s(request.time)
    most_s = min(MAX_SIGNAL_S, time_s - 1)
    if request.signal_s is not None and request.signal_s > most_s:
        raise UserError(
            "The signal comes at the end of the job's time, and not before all of it.",
            where="--signal",
            found=request.signal_s,
            expected=f"at most {most_s:.0f} seconds",
        )


def _spread_ranks(request: JobRequest, num_nodes: int | None) -> Layout:
    """--ntasks: so many ranks on whatever nodes, each with a GPU of its own or none."""
    tasks = request.tasks
    assert tasks is not None
    if request.tasks_per_node is not None or (request.gpus is not None and request.gpus.option != "gpus-per-task"):
        raise UserError(
            "--ntasks leaves it to SLURM how many ranks a node gets, and something else says it.",
            where="--ntasks",
            found=tasks,
            hint="leave --ntasks out, or ask with --ntasks N --gpus-per-task 1 alone",
        )
    if request.launcher == "torchrun":
        raise UserError(
            "torchrun is started once a node, with the same number of ranks on each.",
            where="--ntasks",
            found=tasks,
            hint="use --ntasks-per-node or --gpus-per-node, or --launcher srun",
        )
    if num_nodes is not None and num_nodes > tasks:
        raise UserError(f"{tasks} ranks are too few for {num_nodes} nodes.", where="--ntasks", found=tasks)
    gpus = request.gpus.gpus if request.gpus else None
    if request.gpus is not None:
        _require_one_gpu(request.gpus)
    return Layout(num_nodes, None, tasks, gpus, request.cpus_per_task)


def _ranks_per_node(request: JobRequest) -> tuple[int, Gpus | None]:
    asked, gpus = request.tasks_per_node, request.gpus
    if gpus is None:
        if asked is None:
            raise UserError(
                "Nothing says how many ranks a node has.",
                where="command line",
                expected="--gpus-per-node N, --gres gpu:N, or --gpus-per-task 1 with --ntasks-per-node N",
                hint="for ranks without a GPU use --ntasks-per-node N alone",
            )
        return asked, None
    if gpus.option == "gpus-per-task":
        if request.launcher == "torchrun":
            # The one task of a node is torchrun's agent.
            if asked not in (None, 1):
                raise UserError(
                    "torchrun is started once a node, and starts a rank for each GPU that it was given.",
                    where="--ntasks-per-node",
                    found=asked,
                    expected="1, with --gpus-per-task N for all GPUs of a node",
                )
            return gpus.gpus.count, gpus.gpus
        if asked is None:
            raise UserError(
                "--gpus-per-task does not say how many ranks a node has.",
                where="--gpus-per-task",
                found=gpus.text,
                hint="add --ntasks-per-node N, or --ntasks N for all nodes together",
            )
        _require_one_gpu(gpus)
        return asked, Gpus(tuple((kind, count * asked) for kind, count in gpus.gpus.by_kind))
    if asked not in (None, gpus.gpus.count):
        raise UserError(
            f"{asked} ranks a node do not go with {gpus.gpus.count} GPUs a node: each rank has one.",
            where="--ntasks-per-node",
            found=asked,
            hint=f"leave it out: it follows from --{gpus.option}",
        )
    return gpus.gpus.count, gpus.gpus


def _require_one_gpu(gpus: GpuRequest) -> None:
    if gpus.gpus.count != 1:
        raise UserError(
            "A rank uses one GPU.",
            where="--gpus-per-task",
            found=gpus.text,
            expected="1",
            hint="use --gpus-per-task 1 with more tasks, or --launcher torchrun",
        )


def check(request: JobRequest, layout: Layout, cluster: Cluster | None) -> Checked:
    """Holds the job against the cluster, where that is known, and fills in the CPUs of a rank.

    Raises UserError for a job that could never start, also where SLURM would take it and let it wait for ever.
    """
    asked_s = None if request.time is None else _time_s(request.time)
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


def _time_s(text: str) -> float:
    try:
        return parse_time_s(text)
    except ValueError as error:
        raise UserError(str(error), where="--time", found=text) from error


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
    memory_bytes = _memory_bytes(request.memory)
    cpus = (layout.cpus_per_rank or 1) * (layout.ranks_per_node or 1)
    named = None if request.nodelist is None else set(expand_nodelist(request.nodelist, where="--nodelist"))
    # SLURM adds others to the nodes that are named when there are too few.
    only_named = named is not None and (layout.num_nodes is None or layout.num_nodes <= len(named))
    fitting = []
    for node in there:
        if only_named and named is not None and node.name not in named:
            continue
        has_gpus = layout.gpus_per_node is None or node.gpus.holds(layout.gpus_per_node)
        if has_gpus and node.num_cpus >= cpus and node.memory_bytes >= memory_bytes:
            fitting.append(node)
    return fitting


def _memory_bytes(text: str | None) -> int:
    if text is None:
        return 0
    try:
        return parse_memory_bytes(text)
    except ValueError as error:
        raise UserError(str(error), where="--mem", found=text) from error


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
    """'4 with 8 x a100, 96 CPUs; 2 with no GPU, 32 CPUs': the nodes by what they have."""
    kinds: dict[str, int] = {}
    for node in nodes:
        kind = f"{node.gpus}, {node.num_cpus} CPUs"
        kinds[kind] = kinds.get(kind, 0) + 1
    return "; ".join(f"{count} with {kind}" for kind, count in kinds.items()) or "none"


def _with_shares(
    request: JobRequest, layout: Layout, partitions: Sequence[Partition], fitting: Sequence[Node]
) -> Layout:
    """SLURM's own default is one CPU a task, which starves the loaders: a rank gets the share of its GPU."""
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
