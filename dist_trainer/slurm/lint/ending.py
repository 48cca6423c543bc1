"""Rules about the end of the job's time, and what follows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dist_trainer.config import run as run_file
from dist_trainer.config.files import RUN_FILE, find_file
from dist_trainer.config.optimisations import set_path
from dist_trainer.config.request import DEFAULT_CONFIG
from dist_trainer.config.run import CheckpointConfig, RunConfig
from dist_trainer.errors import UserError
from dist_trainer.slurm import cadence
from dist_trainer.slurm.lint.batch_file import BatchFile
from dist_trainer.slurm.lint.commands import Command
from dist_trainer.slurm.lint.lines import Line
from dist_trainer.slurm.lint.options import Option
from dist_trainer.slurm.lint.problem import Problem
from dist_trainer.slurm.lint.steps import is_ours, is_torchrun, launches, steps
from dist_trainer.slurm.notation import parse_time_s
from dist_trainer.units import whole_number

_REQUEUE = re.compile(r"\bscontrol\s+requeue\b")
# SLURM's default for a --signal without a time.
_SLURMS_SIGNAL_S = 60
_SHORT_S = 600
# At which torchrun's agent tells its ranks, and every rank of ours saves and ends.
_STOP_SIGNALS = ("TERM", "INT", "HUP")


@dataclass(frozen=True)
class _Signal:
    """--signal: `name` without SIG; `is_for_script`: it has the prefix B:, by which the batch shell gets it."""

    option: Option
    name: str
    before_end_s: int
    is_for_script: bool


def no_time(file: BatchFile) -> Iterator[Problem]:
    if file.has_directives and file.option("time") is None:
        yield Problem(
            _last_directive(file),
            "no --time: the partition's own limit holds, which may be short, or the longest there is",
            "add #SBATCH --time=HH:MM:SS",
        )


def no_signal(file: BatchFile) -> Iterator[Problem]:
    if not file.has_directives or _is_short(file):
        return
    if file.option("signal") is None and file.option("no-requeue") is None:
        yield Problem(
            _last_directive(file),
            "no --signal: at the end of its time the job is killed, and does not go on",
            "add #SBATCH --signal=B:USR1@150 and a trap on USR1 that requeues the job, or #SBATCH --no-requeue",
        )


def signal_unheard(file: BatchFile) -> Iterator[Problem]:
    signal = _signal(file)
    if signal is None:
        return
    option = signal.option
    if signal.is_for_script and not _traps(file, signal.name):
        yield Problem(
            option.line,
            f"--signal={option.value} ends the script, which has no trap on {signal.name}",
            f"add: trap 'scontrol requeue \"$SLURM_JOB_ID\"' {signal.name}",
        )
    if not signal.is_for_script and any(_dies_of(signal, command) for command in file.commands):
        yield Problem(
            option.line,
            f"--signal={option.value} goes to the ranks, and ends them",
            f"write --signal=B:{option.value.rpartition(':')[2]}, which goes to the script alone",
        )


def _dies_of(signal: _Signal, command: Command) -> bool:
    """Whether the signal ends what the command starts, with nothing saved."""
    if is_torchrun(command) and "dist_trainer.launch.launchers.elastic" not in command.text:
        return signal.name not in _STOP_SIGNALS
    return is_ours(command) and signal.name not in (*_STOP_SIGNALS, *CheckpointConfig().stop_signals)


def signal_waits(file: BatchFile) -> Iterator[Problem]:
    signal = _signal(file)
    if signal is None or not signal.is_for_script or not _traps(file, signal.name):
        return
    for command in (*steps(file), *launches(file)):
        if command.is_exec:
            yield Problem(command.line, "exec takes the script's place, and its trap with it", "leave out exec")
        elif not command.in_background:
            yield Problem(
                command.line,
                f"the trap on {signal.name} runs only when this command has ended",
                "end the command with `&`, and add a line `wait`",
            )


def requeue_refused(file: BatchFile) -> Iterator[Problem]:
    for line in _requeue_lines(file)[:1]:
        if file.option("no-requeue") is not None:
            yield Problem(
                line.number, "SLURM refuses to requeue a job that has --no-requeue", "write #SBATCH --requeue"
            )
        elif file.option("requeue") is None:
            yield Problem(
                line.number,
                "without --requeue SLURM refuses this where the site's default (JobRequeue) says so",
                "add #SBATCH --requeue",
            )


def requeue_whole_array(file: BatchFile) -> Iterator[Problem]:
    if file.option("array") is None:
        return
    for line in _requeue_lines(file):
        if "SLURM_JOB_ID" in line.text:
            yield Problem(
                line.number,
                "SLURM_JOB_ID of an array's last task means the whole array: all its tasks are requeued",
                'use "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"',
            )


def output_lost(file: BatchFile) -> Iterator[Problem]:
    requeue, calls, mode = file.option("requeue"), _requeue_lines(file), file.option("open-mode")
    if (requeue is None and not calls) or (mode is not None and mode.value.startswith("a")):
        return
    yield Problem(
        requeue.line if requeue else calls[0].number,
        "a job that is requeued begins its output anew, where the site's default does not say otherwise",
        "add #SBATCH --open-mode=append",
    )


def time_and_checkpoints(file: BatchFile) -> Iterator[Problem]:
    time, signal = file.option("time"), _signal(file)
    if time is None or "$" in time.value:
        return
    try:
        time_s = parse_time_s(time.value)
    except ValueError as error:
        yield Problem(time.line, str(error), "write HH:MM:SS or DAYS-HH:MM:SS")
        return
    for checkpoints in _checkpoints(file):
        for notice in cadence.notices(checkpoints, time_s=time_s, signal_s=signal.before_end_s if signal else None):
            yield Problem(
                time.line,
                notice,
                "set checkpoints.every_minutes lower, ask for more time, or let --signal come earlier",
            )


def _is_short(file: BatchFile) -> bool:
    """Whether the job is so short that nothing worth requeueing is lost at its time limit."""
    time = file.option("time")
    try:
        time_s = parse_time_s(time.value) if time else None
    except ValueError:
        return False
    return time_s is not None and time_s <= _SHORT_S


def _signal(file: BatchFile) -> _Signal | None:
    option = file.option("signal")
    if option is None or not option.value:
        return None
    target, _, rest = option.value.rpartition(":")
    name, _, seconds = rest.partition("@")
    return _Signal(
        option,
        name.upper().removeprefix("SIG"),
        _SLURMS_SIGNAL_S if (before_end_s := whole_number(seconds)) is None else before_end_s,
        "B" in target.upper(),
    )


def _traps(file: BatchFile, name: str) -> bool:
    return any(
        command.words[0] == "trap" and name in {word.upper().removeprefix("SIG") for word in command.words[2:]}
        for command in file.commands
    )


def _requeue_lines(file: BatchFile) -> list[Line]:
    return [line for line in file.lines if _REQUEUE.search(line.text)]


def _last_directive(file: BatchFile) -> int:
    return max((option.line for option in file.options), default=1)


def _checkpoints(file: BatchFile) -> Iterator[CheckpointConfig]:
    """The checkpoint settings of each of our runs in the script whose run file can be read here."""
    for command in file.commands:
        configs = _values(command, "--config")
        if not is_ours(command) or (not configs and "$@" in command.text):
            continue
        try:
            path = find_file((configs or [DEFAULT_CONFIG])[-1], RUN_FILE)
            raw = run_file.read(path)
            for setting in _values(command, "--set"):
                key, _, text = setting.partition("=")
                if key.split(".")[0] in RunConfig.model_fields:
                    raw = set_path(raw, key, text)
            yield run_file.check(raw, source=str(path)).checkpoints
        except UserError:
            # The script may run in another folder, where the file is valid; if not, `train` will say so.
            continue


def _values(command: Command, switch: str) -> list[str]:
    words = command.words
    return [
        words[index + 1] if word == switch else word.partition("=")[2]
        for index, word in enumerate(words)
        if (word == switch and index + 1 < len(words)) or word.startswith(f"{switch}=")
    ]
