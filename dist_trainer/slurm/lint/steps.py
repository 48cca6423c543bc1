"""How a script starts ranks, and how many per node: used by several rules."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dist_trainer.cluster.nodelist import expand_nodelist
from dist_trainer.errors import UserError
from dist_trainer.slurm.lint.batch_file import BatchFile
from dist_trainer.slurm.lint.commands import Command
from dist_trainer.slurm.lint.options import Option
from dist_trainer.slurm.notation import parse_gpu_counts, parse_gres
from dist_trainer.units import whole_number

_TORCHRUN = re.compile(
    r"(?<![\w-])"
    r"(?:torchrun|torch\.distributed\.(?:run|launch)|dist_trainer\.launch\.launchers\.elastic|accelerate launch)"
    r"(?![\w-])"
)
_PYTHON = re.compile(r"python|\.py(?!\w)|dist_trainer|dist-trainer")
# Options of srun without a value, after which the program may follow.
_FLAGS = {"--", "--kill-on-bad-exit", "--exclusive", "--label", "--overlap", "--unbuffered", "--no-kill", "--exact"}
_SHELL_SCRIPT = re.compile(r"\.(?:ba)?sh(?!\w)")
_LAUNCH = re.compile(r"(?:-m dist_trainer|dist-trainer) launch(?!\w)|launch\.sh(?!\w)")
_OURS = re.compile(r"(?:-m(?: --)? dist_trainer|dist-trainer)(?: (?:launch|train))?(?= |$)|launch\.sh(?!\w)")


def is_torchrun(command: Command) -> bool:
    """torchrun, or another launcher that starts one rank for each GPU of a node."""
    return node_launcher(command) is not None


def node_launcher(command: Command) -> str | None:
    """The name of a launcher that is started once per node and starts the node's ranks; None for other commands."""
    match = _TORCHRUN.search(command.text)
    if match is not None:
        return "accelerate" if match.group().startswith("accelerate") else "torchrun"
    return "deepspeed" if _runs_deepspeed(command) else None


def _runs_deepspeed(command: Command) -> bool:
    """Whether the command is DeepSpeed's launcher, and not a program with `deepspeed` among its arguments."""
    words = command.text.split()
    for before, word in zip(["", *words], words, strict=False):
        if before == "-m":
            return word == "deepspeed.launcher.runner"
        if word.endswith(".py"):
            return False
        if word.rpartition("/")[2] == "deepspeed" and (before in _FLAGS or "=" in before or before[:2] != "--"):
            return True
    return False


def is_ours(command: Command) -> bool:
    """Whether the command trains with this program."""
    return _OURS.search(command.text) is not None


def steps(file: BatchFile) -> Iterator[Command]:
    """The srun steps that run a training program, not those such as `srun hostname`."""
    for command in file.commands:
        if command.words[0] == "srun" and (
            _PYTHON.search(command.text) or _SHELL_SCRIPT.search(command.text) or is_torchrun(command)
        ):
            yield command


def is_rank_a_task(file: BatchFile, step: Command) -> bool:
    """Whether each task of the step is one rank. Not assumed of a shell script, whose contents are not known. A step
    with --ntasks=1 is a helper.
    """
    if is_torchrun(step) or whole_number(step.option("ntasks") or "") == 1:
        return False
    return _PYTHON.search(step.text) is not None


def launches(file: BatchFile) -> Iterator[Command]:
    """The commands `dist_trainer launch`, which itself calls srun, by default with one task per GPU."""
    for command in file.commands:
        if command.words[0] != "srun" and _LAUNCH.search(command.text):
            yield command


def num_nodes(file: BatchFile) -> int | None:
    """The largest number of nodes that the job may get; None if the script does not say."""
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
    """The option that gives it, and the number; None if there is no such option."""
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
    """Tasks per node of a step that srun starts, or of the job; None if the script does not say."""
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


def num_tasks(file: BatchFile, step: Command) -> int | None:
    """The number of tasks of a step that srun starts; None if the script does not say."""
    own = step.option("ntasks")
    if own is not None:
        return whole_number(own)
    nodes = num_step_nodes(file, step)
    per_node = tasks_per_node(file, step)
    if per_node is not None and nodes is not None:
        return per_node * nodes
    if file.option("ntasks", "ntasks-per-node", "gpus-per-task") or step.option("ntasks-per-node") is not None:
        return None
    # SLURM's default: one task per node.
    return nodes


def num_step_nodes(file: BatchFile, step: Command) -> int | None:
    """The nodes of a step that srun starts: the step's own number, else the job's."""
    own = step.option("nodes")
    return num_nodes(file) if own is None else whole_number(own.rpartition("-")[2])
