"""Rules about ranks: as many as GPUs, each with the resources it needs, on all nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath

from dist_trainer.slurm.lint.batch_file import BatchFile
from dist_trainer.slurm.lint.problem import Problem
from dist_trainer.slurm.lint.steps import (
    gpus_per_node,
    is_rank_a_task,
    launches,
    node_launcher,
    num_nodes,
    num_step_nodes,
    num_tasks,
    steps,
    tasks_per_node,
)
from dist_trainer.slurm.notation import parse_gpu_counts

_RANKS = re.compile(r"--(?:nproc[-_]per[-_]node|num[-_]gpus)[= ]([0-9]{1,12})\b")
_VISIBLE = re.compile(r"(?<![\w$])CUDA_VISIBLE_DEVICES=(\S*)")
_REACHES_OTHER_NODES = ("srun", "mpirun", "mpiexec", "prun", "deepspeed", "pdsh", "ssh")


def tasks_and_gpus(file: BatchFile) -> Iterator[Problem]:
    found = gpus_per_node(file)
    if found is None:
        return
    option, gpus = found
    counts = {tasks_per_node(file, step) for step in steps(file) if is_rank_a_task(file, step)}
    if None in counts and file.option("ntasks", "ntasks-per-node", "gpus-per-task") is None:
        # SLURM's default is one task per node; with GPUs per task their number gives that of the tasks.
        counts.add(1)
    if any(True for _ in launches(file)):
        counts.add(tasks_per_node(file))
    for tasks in sorted(count for count in counts if count is not None and count != gpus):
        yield Problem(
            option.line,
            f"{gpus} GPU{'s' if gpus > 1 else ''} a node, and {tasks} task{'s' if tasks > 1 else ''} a node: each task "
            "is a rank, which uses one GPU",
            f"write #SBATCH --ntasks-per-node={gpus}",
        )


def gpus_per_task(file: BatchFile) -> Iterator[Problem]:
    option = file.option("gpus-per-task")
    if option is None:
        return
    try:
        count = parse_gpu_counts(option.value).count
    except ValueError:
        return
    if count > 1 and (any(is_rank_a_task(file, step) for step in steps(file)) or any(True for _ in launches(file))):
        yield Problem(
            option.line, f"{count} GPUs a task, and each task is a rank, which uses one", "use --gpus-per-task=1"
        )


def torchrun_per_task(file: BatchFile) -> Iterator[Problem]:
    for step in steps(file):
        launcher, tasks = node_launcher(step), tasks_per_node(file, step)
        if launcher is not None and tasks is not None and tasks > 1:
            yield Problem(
                step.line,
                f"srun starts {launcher} {tasks} times a node, and each of them starts all ranks of the node",
                f"add --ntasks-per-node=1 to srun: {launcher} is started once a node",
            )


def torchrun_ranks(file: BatchFile) -> Iterator[Problem]:
    found = gpus_per_node(file)
    if found is None:
        return
    for command in file.commands:
        launcher = node_launcher(command)
        match = _RANKS.search(command.text) if launcher else None
        if match is not None and int(match.group(1)) != found[1]:
            yield Problem(
                command.line,
                f"{launcher} starts {match.group(1)} ranks a node, and a node has {found[1]} GPUs",
                f"use --num_gpus={found[1]}" if launcher == "deepspeed" else f"use --nproc-per-node={found[1]}",
            )


def first_node_only(file: BatchFile) -> Iterator[Problem]:
    nodes = num_nodes(file)
    if nodes is None or nodes < 2 or any(True for _ in launches(file)):
        return
    if any(command.words[0] in _REACHES_OTHER_NODES for command in file.commands):
        return
    option = file.option("nodes", "nodelist")
    yield Problem(
        option.line if option else 1,
        f"{nodes} nodes, and the script, which runs on the first one, starts nothing on the others",
        "start the ranks with srun, or with `python -m dist_trainer launch --launcher srun`",
    )


def visible_devices(file: BatchFile) -> Iterator[Problem]:
    for line in file.lines:
        match = _VISIBLE.search(line.text)
        if match is not None:
            yield Problem(
                line.number,
                f"CUDA_VISIBLE_DEVICES={match.group(1)} is put in place of the GPUs that SLURM chose",
                "leave it to SLURM; with --gpus-per-task=1 each task sees its own GPU as number 0",
            )


def cpus_per_task(file: BatchFile) -> Iterator[Problem]:
    option = file.option("cpus-per-task")
    if option is None or any("SRUN_CPUS_PER_TASK=" in line.text for line in file.lines):
        return
    for step in steps(file):
        if step.option("cpus-per-task") is None and "SLURM_CPUS_PER_TASK:+" not in step.text:
            yield Problem(
                step.line,
                f"since SLURM 22.05 srun does not take --cpus-per-task={option.value} over from the job: each task has "
                "one CPU",
                'add --cpus-per-task="$SLURM_CPUS_PER_TASK" to srun',
            )


def lost_rank(file: BatchFile) -> Iterator[Problem]:
    if any("SLURM_KILL_BAD_EXIT=" in line.text for line in file.lines):
        return
    for step in steps(file):
        # A single task has no other tasks that would wait for it.
        if step.option("kill-on-bad-exit") is None and num_tasks(file, step) != 1:
            yield Problem(
                step.line,
                "when a rank ends badly, srun lets the others wait for it",
                "add --kill-on-bad-exit=1 to srun",
            )


def early_variable(file: BatchFile) -> Iterator[Problem]:
    for command in file.commands:
        if command.words[0] != "srun" or num_tasks(file, command) == 1:
            continue
        for name in command.early:
            if name == "SLURM_NODEID" and num_step_nodes(file, command) == 1:
                continue
            yield Problem(
                command.line,
                f"the script's own shell expands ${name} before srun starts: all tasks get its value, 0",
                f"leave it to the shell of each task, in single quotes: srun bash -c '... ${name} ...'",
            )
        run_files = {PurePath(word).name for word in command.words}
        for written in file.written:
            if written.name in run_files:
                yield Problem(
                    written.line,
                    f"the script's own shell expands ${written.variable} as it writes {written.name}: all tasks get 0",
                    f"write \\${written.variable}, or quote the heredoc's end (<<'EOF')",
                )
