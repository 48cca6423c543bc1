"""What is asked of SLURM for a run, and what follows from that alone: how many ranks, and where."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dist_trainer.cluster.nodelist import expand_nodelist
from dist_trainer.errors import UserError
from dist_trainer.slurm.cadence import MAX_SIGNAL_S
from dist_trainer.slurm.notation import Gpus, parse_gpu_counts, parse_gres, parse_memory_bytes, parse_time_s
from dist_trainer.units import counted

Launcher = Literal["srun", "torchrun"]
GpuOption = Literal["gpus-per-node", "gres", "gpus-per-task"]


@dataclass(frozen=True)
class GpuRequest:
    """The option that asks for GPUs, and its value as the user wrote it."""

    option: GpuOption
    text: str

    @property
    def gpus(self) -> Gpus:
        """GPUs per node, or with --gpus-per-task per task. Raises UserError if the text asks for none."""
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
    """What was asked; None: not given. `options`: further options of sbatch, as NAME or NAME=VALUE.

    `signal_s`: how many seconds before its end the job gets USR1, `max_requeues`: how often it goes back into the queue
    by itself; both are ignored if the job is not requeued.
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
    max_requeues: int = 100
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Where the ranks go. `num_nodes` and `ranks_per_node` are None if SLURM is to spread the ranks as it likes.

    `cpus_per_rank` is None if nothing says it. `has_whole_nodes`: all GPUs of each node are asked for.
    """

    num_nodes: int | None
    ranks_per_node: int | None
    num_ranks: int
    gpus_per_node: Gpus | None
    cpus_per_rank: int | None = None
    has_whole_nodes: bool = False


def lay_out(request: JobRequest) -> Layout:
    """Raises UserError for a request that contradicts itself, or from which the number of ranks does not follow."""
    _check_signal(request)
    memory_bytes(request.memory)
    num_nodes, named = request.nodes, named_nodes(request)
    if num_nodes is not None and len(named) > num_nodes:
        raise UserError(
            f"--nodelist names {counted(len(named), 'node')}, and the job is for {num_nodes}.",
            where="--nodes",
            found=num_nodes,
            hint="leave --nodes out, or name fewer nodes",
        )
    num_nodes = num_nodes or len(named) or None
    if request.tasks is not None:
        return _spread_ranks(request, num_nodes)
    num_nodes = num_nodes or 1
    ranks, gpus = _ranks_per_node(request)
    return Layout(num_nodes, ranks, num_nodes * ranks, gpus, request.cpus_per_task)


def _check_signal(request: JobRequest) -> None:
    time_s = math.inf if request.time is None else time_limit_s(request.time)
    most_s = min(MAX_SIGNAL_S, time_s - 1)
    if request.signal_s is not None and request.signal_s > most_s:
        raise UserError(
            "The signal comes at the end of the job's time, and not before all of it.",
            where="--signal",
            found=request.signal_s,
            expected=f"at most {most_s:.0f} seconds",
        )


def _spread_ranks(request: JobRequest, num_nodes: int | None) -> Layout:
    """--ntasks: that many ranks on any nodes, each with a GPU of its own or without."""
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
        raise UserError(
            f"{counted(tasks, 'rank')} are too few for {counted(num_nodes, 'node')}.", where="--ntasks", found=tasks
        )
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
            # The single task per node is torchrun's agent.
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
            f"{counted(asked, 'rank')} a node, and {counted(gpus.gpus.count, 'GPU')}: each rank has one.",
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


def named_nodes(request: JobRequest) -> tuple[str, ...]:
    """The nodes of --nodelist. Raises UserError."""
    if request.nodelist is None:
        return ()
    try:
        return expand_nodelist(request.nodelist)
    except UserError as error:
        error.where, error.key = "--nodelist", None
        raise


def memory_bytes(text: str | None) -> int:
    """The value of --mem in bytes, 0 if not given. Raises UserError."""
    if text is None:
        return 0
    try:
        return parse_memory_bytes(text)
    except ValueError as error:
        raise UserError(str(error), where="--mem", found=text) from error


def time_limit_s(text: str) -> float:
    """The value of --time in seconds. Raises UserError."""
    try:
        return parse_time_s(text)
    except ValueError as error:
        raise UserError(str(error), where="--time", found=text) from error
