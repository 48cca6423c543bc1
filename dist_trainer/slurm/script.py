"""The batch script, as a pure function of the request: the same job gives the same text."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.cluster.rank import FIRST_PORT, NUM_PORTS
from dist_trainer.errors import EXIT_HOST_LOST
from dist_trainer.launch.plan import argument_groups
from dist_trainer.slurm.job_request import JobRequest, Layout

# Stands for the array task's number in arguments of `train`.
TASK_MARK = "%a"
# How often a job that lost a node before its first checkpoint may requeue itself; bounded, because a node may be bad.
_NUM_FREE_RETURNS = 3
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./\[\]-]+")


@dataclass(frozen=True)
class Training:
    """What the job trains. `arguments` reach `train` literally, except for TASK_MARK in those of an array.

    `env`: variables that the user set for every rank. `resumes_elsewhere`: the arguments name a checkpoint to begin
    from; after a requeue the job resumes from its own checkpoints instead.
    """

    name: str
    interpreter: str
    work_dir: Path
    run_dir: Path
    arguments: tuple[str, ...]
    resumes_elsewhere: bool = False
    env: tuple[tuple[str, str], ...] = ()


def render(request: JobRequest, layout: Layout, training: Training, *, signal_s: int | None) -> str:
    """The text of the script. `signal_s` None: the job is not requeued, and gets no signal."""
    parts = [_directives(request, layout, training, signal_s), _places(request, layout, training)]
    if request.launcher == "torchrun":
        parts.append(_meeting(layout))
        launch = _torchrun(layout)
    else:
        launch = ['"$python" -m dist_trainer launch --launcher srun']
    command = " \\\n    ".join([*launch, *_arguments(request, training, requeues=signal_s is not None)])
    if signal_s is None:
        parts.append(f"exec {command}\n")
    else:
        lost_node = "" if request.launcher == "torchrun" else _LOST_NODE
        parts += [_requeue(request, signal_s), f"{command} &\nlaunch=$!\ntrap requeue USR1\n{_END}{lost_node}"]
    return "\n".join(parts)


def output_pattern(request: JobRequest, run_dir: Path) -> str:
    """The path of the job's output, in sbatch's pattern."""
    name = "slurm-%A_%a.out" if request.array else "slurm-%j.out"
    return f"{str(run_dir / 'logs').replace('%', '%%')}/{name}"


def _directives(request: JobRequest, layout: Layout, training: Training, signal_s: int | None) -> str:
    agents = request.launcher == "torchrun"
    cpus = layout.cpus_per_rank
    if agents and cpus is not None:
        cpus *= layout.ranks_per_node or 1
    options: list[tuple[str, object]] = [
        ("job-name", training.name),
        ("partition", request.partition),
        ("account", request.account),
        ("nodes", layout.num_nodes),
        ("nodelist", request.nodelist),
        ("ntasks", request.tasks),
        ("ntasks-per-node", None if request.tasks is not None else 1 if agents else layout.ranks_per_node),
    ]
    if request.gpus is not None:
        options.append((request.gpus.option, request.gpus.text))
    options += [
        ("cpus-per-task", cpus),
        ("mem", request.memory or ("0" if layout.has_whole_nodes else None)),
        ("time", request.time),
        ("array", request.array),
    ]
    if signal_s is None:
        options.append(("no-requeue", ""))
    else:
        options += [("signal", f"B:USR1@{signal_s}"), ("requeue", "")]
    options += [
        ("open-mode", "append"),
        ("chdir", training.work_dir),
        ("output", output_pattern(request, training.run_dir)),
    ]
    options += [(name, value) for name, _, value in (option.partition("=") for option in request.options)]
    lines = [_directive(name, str(value)) for name, value in options if value is not None]
    return "\n".join(["#!/bin/bash", *lines]) + "\n"


def _directive(name: str, value: str) -> str:
    if not value:
        return f"#SBATCH --{name}"
    if _PLAIN.fullmatch(value) is None:
        # sbatch unquotes a directive's value as a shell does, but expands no `$`.
        value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH --{name}={value}"


def _places(request: JobRequest, layout: Layout, training: Training) -> str:
    run_dir = shlex.quote(str(training.run_dir))
    if request.array:
        run_dir += "/task-$SLURM_ARRAY_TASK_ID"
    # srun passes the script's exported variables to the ranks.
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in training.env)
    return f"""\
# {layout.num_ranks} ranks. Written by `dist_trainer slurm submit`; sbatch takes it as it stands.
set -u

python={shlex.quote(training.interpreter)}
run_dir={run_dir}
{exports}
if [ ! -x "$python" ]; then
    echo "$SLURMD_NODENAME has no $python: it must be in a folder that every node sees" >&2
    exit 2
fi
"""


def _requeue(request: JobRequest, signal_s: int) -> str:
    # SLURM_JOB_ID of an array's last task is also the id of the whole array.
    job = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if request.array else "$SLURM_JOB_ID"
    # `launch` tells its ranks at SIGTERM; srun passes SIGUSR1 on, but at SIGTERM it kills its tasks.
    stop = "USR1" if request.launcher == "torchrun" else "TERM"
    return f"""\
# SLURM sends USR1 {signal_s} s before the time is over. The run saves and ends, and the job goes back into the queue,
# to go on from there. Without a new checkpoint since it began it would repeat itself for ever, and is left to end.
newest() {{ cat "$run_dir/checkpoints/latest" 2>/dev/null; }}
# A signal interrupts `wait`.
await_end() {{
    while kill -0 "$launch" 2>/dev/null; do wait "$launch"; done
    wait "$launch"
}}
at_start=$(newest)
# $1: how many times a job without a new checkpoint may go back all the same.
go_back() {{
    if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {request.max_requeues} ]; then
        echo "The job is not requeued: it was {request.max_requeues} times (--max-requeues)." >&2
    elif [ "$(newest)" = "$at_start" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -ge "$1" ]; then
        echo "The job is not requeued: it has written no checkpoint since it began." >&2
    else
        scontrol requeue "{job}"
    fi
}}
requeue() {{
    kill -{stop} "$launch" 2>/dev/null || return
    await_end
    if [ $? -gt 128 ]; then go_back 0; fi
}}
"""


# `wait` returns the status also after the process has ended: bash remembers it.
_END = """\
# The job's status is that of the launch.
await_end
"""

# The launch ends before SLURM notices that a node is gone, and SLURM does not requeue a job that has ended by itself.
_LOST_NODE = f"""\
if [ $? -eq {EXIT_HOST_LOST} ]; then go_back {_NUM_FREE_RETURNS}; fi
await_end
"""


def _meeting(layout: Layout) -> str:
    threads = "" if layout.cpus_per_rank is None else f"export OMP_NUM_THREADS={layout.cpus_per_rank}\n"
    return f"""\
# The agents meet on the first node, at a port that follows from the job's number.
first_host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$(({FIRST_PORT} + SLURM_JOB_ID % {NUM_PORTS}))
{threads}"""


def _torchrun(layout: Layout) -> list[str]:
    """One torchrun agent per node, which starts the node's ranks."""
    cpus = "" if layout.cpus_per_rank is None else ' --cpus-per-task="$SLURM_CPUS_PER_TASK"'
    return [
        f"srun --ntasks-per-node=1{cpus} --kill-on-bad-exit=1",
        '"$python" -m dist_trainer.launch.launchers.elastic',
        f'--nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node={layout.ranks_per_node}',
        '--rdzv-backend=c10d --rdzv-endpoint="$first_host:$port" --rdzv-id="$SLURM_JOB_ID"',
        "-m -- dist_trainer train",
    ]


def _arguments(request: JobRequest, training: Training, *, requeues: bool) -> list[str]:
    words = [_word(argument, is_array=request.array is not None) for argument in training.arguments]
    lines = ['--run-dir "$run_dir"', *(" ".join(group) for group in argument_groups(tuple(words)))]
    if training.resumes_elsewhere and requeues:
        # The last --resume on the command line counts.
        lines.append("${at_start:+--resume auto}")
    return lines


def _word(argument: str, *, is_array: bool) -> str:
    if not is_array or TASK_MARK not in argument:
        return shlex.quote(argument)
    return '"$SLURM_ARRAY_TASK_ID"'.join(shlex.quote(part) if part else "" for part in argument.split(TASK_MARK))
