"""How a script starts ranks, and with how many of them a node: what several rules look at."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dist_trainer.cluster.nodelist import expand_nodelist
from dist_trainer.errors import UserError
from dist_trainer.slurm.lint.batch_file import BatchFile, Command, Option
from dist_trainer.slurm.notation import parse_gpu_counts, parse_gres
from dist_trainer.units import whole_number

_TORCHRUN = re.compile(
    r"(?<![\w-])"
    r"(?:torchrun|torch\.distributed\.(?:run|launch)|dist_trainer\.launch\.launchers\.elastic|accelerate launch)"
    r"(?![\w-])"
)
_PYTHON = re.compile(r"python|\.py(?!\w)|dist_trainer|dist-trainer")
_LAUNCH = re.compile(r"(?:-m dist_trainer|dist-trainer) launch(?!\w)|launch\.sh(?!\w)")
_OURS = re.compile(r"(?:-m(?: --)? dist_trainer|dist-trainer)(?: (?:launch|train))?(?= |$)|launch\.sh(?!\w)")


def is_torchrun(command: Command) -> bool:
    return _TORCHRUN.search(command.text) is not None


def is_ours(command: Command) -> bool:
    """Whether it trains with this program."""
    return _OURS.search(command.text) is not None


def steps(file: BatchFile) -> Iterator[Command]:
    """What srun starts of a run's programs; `srun hostname` and the like are none of them."""
    for command in file.commands:
        if command.words[0] == "srun" and (_PYTHON.search(command.text) or is_torchrun(command)):
            yield command


def launches(file: BatchFile) -> Iterator[Command]:
    """`dist_trainer launch`, which itself calls srun, with a task for each GPU where nothing else is said."""
    for command in file.commands:
        if command.words[0] != "srun" and _LAUNCH.search(command.text):
            yield command


def num_nodes(file: BatchFile) -> int | None:
    """The most nodes that the job may get; None where nothing says it."""
    nodes = file.option("nodes")
    if nodes is not None:
        last = nodes.value.rpartition("-")[2]
        return whole_number(last)
    nodelist = file.option("nodelist")
    if nodelist is not None:
        try:
            return len(expand_nodelist(nodelist.value))
        except UserError:
            return None
    return None if file.option("ntasks") else 1


def gpus_per_node(file: BatchFile) -> tuple[Option, int] | None:
    """The option that says it, and the number; None where nothing does."""
    option = file.option("gpus-per-node", "gres", "gpus")
    if option is None:
        return None
    try:
        count = (parse_gres if option.name == "gres" else parse_gpu_counts)(option.value).count
    except ValueError:
        return None
    if option.name == "gpus":
        nodes = num_nodes(file)
        count = count // nodes if nodes and count % nodes == 0 else 0
    return (option, count) if count else None


def tasks_per_node(file: BatchFile, step: Command | None = None) -> int | None:
    """Of a step that srun starts, or of the job; None where nothing says it."""
    own = step.option("ntasks-per-node") if step else None
    if own is not None:
        return whole_number(own)
    tasks = step.option("ntasks") if step else None
    if tasks is None:
        per_node = file.option("ntasks-per-node")
        if per_node is not None:
            return whole_number(per_node.value)
        option = file.option("ntasks")
        tasks = option.value if option else None
    nodes = (step.option("nodes") if step else None) or str(num_nodes(file) or "")
    count, num = whole_number(tasks or ""), whole_number(nodes)
    return None if count is None or not num or count % num else count // num
