"""`dist_trainer slurm`: submits a run, says where it is, and says what is wrong with a batch script."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.cli import train
from dist_trainer.cli.commands import run_one_of
from dist_trainer.cli.parser import Parser, not_negative, positive
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.resolve import names, resolve
from dist_trainer.config.run import CheckpointConfig
from dist_trainer.config.run_dir import create_next_run_dir, create_run_dir, next_run_dir
from dist_trainer.encoding import print_script
from dist_trainer.errors import EXIT_FAILURE, EXIT_OK, UserError
from dist_trainer.launch.environment import named_env, refuse_stray_rank
from dist_trainer.slurm import cadence
from dist_trainer.slurm.commands import is_here
from dist_trainer.slurm.facts import Cluster, read_cluster
from dist_trainer.slurm.fitting import Checked, check
from dist_trainer.slurm.job_request import GpuOption, GpuRequest, JobRequest, Launcher, lay_out
from dist_trainer.slurm.job_state import ask_for_job
from dist_trainer.slurm.notation import format_time, parse_array
from dist_trainer.slurm.script import TASK_MARK, Training, output_pattern, render
from dist_trainer.slurm.submit import read_submitted, submit
from dist_trainer.units import counted

# Options that --sbatch refuses: those for which `submit` has a switch of its own, and those that would change the
# number of ranks, where the job runs, or how it goes back into the queue.
_SAID_BY_SWITCHES = (
    *("nodes", "gpus-per-node", "gres", "gpus-per-task", "ntasks-per-node", "ntasks", "cpus-per-task", "mem", "time"),
    *("partition", "account", "nodelist", "array", "signal", "no-requeue"),
)
_NOT_FREE = (
    *("requeue", "open-mode", "chdir", "gpus", "ntasks-per-gpu", "gpus-per-socket", "ntasks-per-socket"),
    *("ntasks-per-core", "wait", "wrap", "parsable", "test-only"),
)


def build_submit_parser() -> Parser:
    parser = Parser(
        "slurm submit",
        "Write a batch script for a run and submit it. All other switches are those of `dist_trainer train`.",
    )
    size = parser.add_argument_group("size")
    size.add_argument("--nodes", type=positive, metavar="N", help="default: 1, or those of --nodelist")
    size.add_argument("--gpus-per-node", metavar="[TYPE:]N", help="and as many ranks")
    size.add_argument("--gres", metavar="gpu[:TYPE]:N", help="the same in the older form")
    size.add_argument(
        "--gpus-per-task", metavar="[TYPE:]1", help="with --ntasks-per-node or --ntasks: each rank sees its GPU alone"
    )
    size.add_argument("--ntasks-per-node", type=positive, metavar="N", help="ranks a node, where GPUs do not say it")
    size.add_argument("--ntasks", type=positive, metavar="N", help="ranks in all, spread over nodes as they have room")
    size.add_argument(
        "--cpus-per-task", type=positive, metavar="N", help="CPUs a rank (default: the share of its GPU in the node)"
    )
    size.add_argument(
        "--mem", metavar="SIZE", help="memory a node (default: all of it where all its GPUs are asked for)"
    )
    size.add_argument("--time", metavar="TIME", help="HH:MM:SS, DAYS-HH:MM:SS or minutes (default: the partition's)")
    place = parser.add_argument_group("place")
    place.add_argument("--partition", metavar="NAME")
    place.add_argument("--account", metavar="NAME")
    place.add_argument("--nodelist", metavar="NODES", help="these nodes: gpu[1-4],gpu7")
    place.add_argument(
        "--sbatch",
        dest="options",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="any other option of sbatch: qos=long; may be repeated",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--launcher",
        choices=("srun", "torchrun"),
        default="srun",
        help="srun: a task a rank; torchrun: one agent a node, which srun starts (default: %(default)s)",
    )
    how.add_argument("--array", metavar="TASKS", help="0-3: a run for each; %%a in other switches is the task's number")
    how.add_argument(
        "--signal",
        type=positive,
        metavar="SECONDS",
        help="how long before its end the job is told to go back into the queue (default: the time to save and 30 s)",
    )
    how.add_argument(
        "--max-requeues",
        type=not_negative,
        metavar="N",
        default=JobRequest.max_requeues,
        help="how often the job goes back into the queue by itself (default: %(default)s)",
    )
    how.add_argument("--no-requeue", action="store_true", help="let the end of its time be the end of the job")
    how.add_argument(
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="give every rank this variable; may be said again",
    )
    how.add_argument("--run-dir", type=Path, metavar="DIR", help="the run's folder (default: a new one under runs/)")
    how.add_argument("--dry-run", action="store_true", help="print the script and submit nothing")
    return parser


def build_status_parser() -> Parser:
    parser = Parser("slurm status", "Say where a submitted run is: in the queue, under way, or ended and why.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the folder that `slurm submit` named")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def build_lint_parser() -> Parser:
    parser = Parser("slurm lint", "Say what is wrong with a batch script. Exit status 1 when something is.")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(argv: list[str]) -> int:
    """The exit status; see each command. Raises UserError."""
    return run_one_of({"submit": _submit, "status": _status, "lint": _lint}, argv, of="slurm")


@dataclass(frozen=True)
class _Prepared:
    """A checked request, and all else that its script needs except the folder of a new run.

    `tasks`: the numbers of an array's tasks, empty without an array. `signal_s`: how long before its end the job is
    told, None if it is not requeued. `names`: those of the run file and the DeepSpeed JSON.
    """

    request: JobRequest
    tasks: tuple[int, ...]
    checked: Checked
    training: Training
    signal_s: int | None
    names: tuple[str, str]
    notices: tuple[str, ...]

    def script(self, run_dir: Path) -> str:
        training = dataclasses.replace(self.training, run_dir=run_dir)
        return render(self.request, self.checked.layout, training, signal_s=self.signal_s)


def _submit(argv: list[str]) -> int:
    """Submits the run, or prints its script. Checks it as every rank will, before anything is made or queued."""
    parser = build_submit_parser()
    args, arguments = parser.parse_known_args(argv)
    prepared = _prepare(args, arguments, parser)
    if args.dry_run:
        for notice in prepared.notices:
            print(f"notice     {notice}", file=sys.stderr)
        print_script(prepared.script(prepared.training.run_dir))
        return EXIT_OK
    if args.run_dir:
        run_dir = args.run_dir
        _refuse_second_job(run_dir)
        create_run_dir(run_dir)
    else:
        run_dir = create_next_run_dir(*prepared.names)
    submitted = submit(
        prepared.script(run_dir),
        run_dir,
        prepared.request,
        os.environ,
        output=output_pattern(prepared.request, run_dir),
        tasks=prepared.tasks,
        num_ranks=prepared.checked.layout.num_ranks,
        arguments=prepared.training.arguments,
        is_private=bool(prepared.training.env),
    )
    print(f"job        {submitted.job_id}{_size(prepared)}")
    print(f"run        {run_dir}")
    print(f"script     {submitted.script}")
    print(f"output     {submitted.output}")
    for notice in prepared.notices:
        print(f"notice     {notice}")
    print(f"look with  python -m dist_trainer slurm status {shlex.quote(str(run_dir))}")
    return EXIT_OK


def _prepare(args: argparse.Namespace, arguments: list[str], parser: Parser) -> _Prepared:
    # sbatch passes this environment on to the job: a rank's number in it would reach every rank.
    refuse_stray_rank(os.environ, whose="of the job", again="submit")
    request = _request_from(args)
    tasks = _tasks(request)
    # An array's tasks differ only in their number: its first and its last stand for all.
    edges = (tasks[0], tasks[-1]) if tasks else (None,)
    asked = [_train_arguments(arguments, task, parser) for task in edges]
    layout = lay_out(request)
    runs = [resolve(train.request_from(one), world_size=layout.num_ranks, device=ANY_DEVICE) for one in asked]
    checkpoints, resume = runs[0].run.checkpoints, asked[0].resume
    if asked[0].init_from is not None:
        from dist_trainer.checkpoints.find import Resume
        from dist_trainer.exchange.initial import check_initial

        for one, resolved in zip(asked, runs, strict=True):
            check_initial(one.init_from, Resume(), resolved, asked_resume=one.resume)
    if resume == "never" and request.requeues:
        raise UserError(
            "A job that is requeued would begin anew each time.",
            where="--resume",
            found="never",
            hint="leave it out (a new folder has no checkpoint), or add --no-requeue",
        )
    cluster, unknown = _cluster(is_dry_run=args.dry_run)
    checked = check(request, layout, cluster)
    signal_s = _signal_s(request, checkpoints, checked)
    says_resume = any(word.partition("=")[0] == "--resume" for word in arguments)
    config_name, ds_name = names(train.request_from(asked[0]))
    return _Prepared(
        request=request,
        tasks=tasks,
        checked=checked,
        training=Training(
            name=f"{config_name}-{ds_name}",
            interpreter=sys.executable,
            work_dir=Path.cwd(),
            run_dir=args.run_dir or next_run_dir(config_name, ds_name),
            arguments=tuple(arguments if says_resume else ["--resume", "auto", *arguments]),
            resumes_elsewhere=resume != "auto",
            env=named_env(args.env, os.environ),
        ),
        signal_s=signal_s,
        names=(config_name, ds_name),
        notices=(
            *unknown,
            *checked.notices,
            *cadence.notices(checkpoints, time_s=checked.time_s, signal_s=signal_s),
            *runs[0].notices,
        ),
    )


def _request_from(args: argparse.Namespace) -> JobRequest:
    asked: tuple[tuple[GpuOption, str | None], ...] = (
        ("gpus-per-node", args.gpus_per_node),
        ("gres", args.gres),
        ("gpus-per-task", args.gpus_per_task),
    )
    gpus = [GpuRequest(option, text) for option, text in asked if text is not None]
    if len(gpus) > 1:
        raise UserError(
            "GPUs are asked for twice.",
            where="command line",
            found=" ".join(f"--{one.option}" for one in gpus),
            hint="say it with one of them",
        )
    for option in args.options:
        name = option.partition("=")[0]
        if name.startswith("-") or not name:
            raise UserError("This is no option of sbatch.", where="--sbatch", found=option, expected="like qos=long")
        if name in _SAID_BY_SWITCHES:
            raise UserError("There is a switch for this.", where="--sbatch", found=option, hint=f"use --{name}")
        if name in _NOT_FREE:
            raise UserError(
                "This follows from the other switches, or from how a job is run.", where="--sbatch", found=option
            )
    if args.no_requeue and args.signal is not None:
        raise UserError("With --no-requeue a job is sent no signal.", where="--signal", found=args.signal)
    launcher: Launcher = args.launcher
    return JobRequest(
        launcher=launcher,
        nodes=args.nodes,
        gpus=gpus[0] if gpus else None,
        tasks_per_node=args.ntasks_per_node,
        tasks=args.ntasks,
        cpus_per_task=args.cpus_per_task,
        memory=args.mem,
        time=args.time,
        partition=args.partition,
        account=args.account,
        nodelist=args.nodelist,
        array=args.array,
        signal_s=args.signal,
        requeues=not args.no_requeue,
        max_requeues=args.max_requeues,
        options=tuple(args.options),
    )


def _tasks(request: JobRequest) -> tuple[int, ...]:
    if request.array is None:
        return ()
    try:
        return parse_array(request.array)
    except ValueError as error:
        raise UserError(str(error), where="--array", found=request.array) from error


def _train_arguments(arguments: list[str], task: int | None, parser: Parser) -> argparse.Namespace:
    """What one run is asked; of an array, the run of this task."""
    own = arguments if task is None else [argument.replace(TASK_MARK, str(task)) for argument in arguments]
    return train.build_parser().parse(own, also_known=parser.option_strings())


def _cluster(*, is_dry_run: bool) -> tuple[Cluster | None, tuple[str, ...]]:
    """What SLURM says of the cluster, or None and a notice why that is not known.

    Without it a script can be printed (`is_dry_run`), but not submitted: then raises UserError.
    """
    if is_dry_run and not is_here():
        return None, ("there is no SLURM on this host: the script is not checked against a cluster",)
    try:
        return read_cluster(os.environ), ()
    except UserError as error:
        if not is_dry_run:
            raise
        return None, (f"{error.problem} The script is not checked against it.",)


def _signal_s(request: JobRequest, checkpoints: CheckpointConfig, checked: Checked) -> int | None:
    if not request.requeues:
        return None
    return request.signal_s or cadence.choose_signal_s(checkpoints, checked.time_s)


def _refuse_second_job(run_dir: Path) -> None:
    """Raises UserError if a job for this folder is queued or runs: two would write into the same files."""
    before = read_submitted(run_dir)
    if before is None:
        return
    jobs = ask_for_job(before.job_id, before.tasks, os.environ).by_task.values()
    if any(job.waits or job.runs for job in jobs):
        raise UserError(
            "A job for this folder is queued or runs.",
            where="--run-dir",
            found=str(run_dir),
            hint=f"wait for it, end it with `scancel {before.job_id}`, or name another folder",
        )


def _size(prepared: _Prepared) -> str:
    layout, time_s = prepared.checked.layout, prepared.checked.time_s
    nodes = "" if layout.num_nodes is None else f" on {counted(layout.num_nodes, 'node')}"
    each = f"{counted(len(prepared.tasks), 'task')}, each " if prepared.tasks else ""
    limit = "" if time_s is None else f", {format_time(time_s)}"
    return f" ({each}{counted(layout.num_ranks, 'rank')}{nodes}{limit})"


def _status(argv: list[str]) -> int:
    """0 while the run is queued, runs, or has come to its end; 1 if a job has ended otherwise."""
    args = build_status_parser().parse(argv)

    from dist_trainer.slurm import status

    found = status.read_statuses(args.run_dir, os.environ)
    if args.json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
    elif len(found) == 1:
        print("\n".join(status.lines(found[0])))
    else:
        print("\n".join(status.one_line(one) for one in found))
    return EXIT_FAILURE if any(one.has_failed for one in found) else EXIT_OK


def _lint(argv: list[str]) -> int:
    """0 where nothing was found, else 1."""
    args = build_lint_parser().parse(argv)

    from dist_trainer.slurm.lint import lint_file

    findings = [finding for path in args.files for finding in lint_file(path)]
    for finding in findings:
        print(finding)
    return EXIT_FAILURE if findings else EXIT_OK
