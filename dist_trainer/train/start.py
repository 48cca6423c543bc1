"""One rank from its first line to its last: resolve, open the data, meet the others, build, train, sum up."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import secrets
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dist_trainer import __version__
from dist_trainer.cause import has_guard
from dist_trainer.checkpoints.before_start import check_before_start
from dist_trainer.checkpoints.card import DataFacts, Made
from dist_trainer.checkpoints.changed import differences, refuse_another_kind
from dist_trainer.checkpoints.changed import made_by as made_by_run
from dist_trainer.checkpoints.find import Resume
from dist_trainer.checkpoints.position import Position
from dist_trainer.cluster.environments import LAUNCH_ID
from dist_trainer.cluster.folder_lock import FolderLock
from dist_trainer.cluster.rank import RankInfo
from dist_trainer.cluster.slurm import slurm_facts
from dist_trainer.cluster.threads import count_host_cores
from dist_trainer.config import run_dir as run_dirs
from dist_trainer.config.adapt import DeviceFacts
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import ResolvedRun, names, resolve
from dist_trainer.config.run import MemoryConfig
from dist_trainer.disk import write_text
from dist_trainer.encoding import as_utf8
from dist_trainer.endings import Start
from dist_trainer.errors import EXIT_OK, EXIT_TARGET_MISSED, UserError
from dist_trainer.logs import quiet_deepspeed
from dist_trainer.redact import redacted_argv
from dist_trainer.streams import outlive_readers
from dist_trainer.train.failure import Speaker, end_by_signal, fail_before_meeting, fail_in_the_run, say
from dist_trainer.train.signals import end_on_signals

if TYPE_CHECKING:
    from dist_trainer.memory.advice.preflight import Preflight
    from dist_trainer.memory.targets import Baseline
    from dist_trainer.monitor.rank import RankMonitor
    from dist_trainer.report.summary import Summary
    from dist_trainer.train.loop import PhaseData


@dataclass(frozen=True)
class Job:
    """What one rank was told."""

    request: Request
    rank: RankInfo
    run_dir: Path | None
    resume: str
    max_steps: int | None
    debug: bool
    measure_allocator: bool = False
    strict: bool = False
    baseline: Path | None = None
    force: bool = False


def start(job: Job) -> NoReturn:
    """Runs the job and ends the process: 0, or the status of what went wrong, said by one rank."""
    rank = job.rank.rank
    outlive_readers()
    # Finds nothing in the imports and takes a quarter of their time. Until `hygiene.end_imports`.
    gc.disable()
    try:
        # The mistakes in files and checkpoint, before torch is imported; the real device is asked afterwards.
        resume, asked = check_before_start(
            job.request,
            world_size=job.rank.world_size,
            resume=job.resume,
            run_dir=job.run_dir,
            with_files=rank == 0,
        )
        baseline = read_baseline(job, asked)
        choose_cuda_allocator(asked.run.memory)
        from dist_trainer.train import planning, process
        from dist_trainer.train.shortage import said_plainly

        with quiet_deepspeed():
            device = process.device_facts()
            if job.measure_allocator:
                _refuse_to_measure_on(device)
                process.quiet_profiler()
            num_threads = process.set_threads(job.rank)
            resolved = resolve(job.request, world_size=job.rank.world_size, device=device, done=resume.phases)
            planned = plan_run(job, resolved, device) if rank == 0 else None
            data = open_data(resolved, show_progress=rank == 0)
            made_by = describe_run(resolved, job.rank, data)
            if resume.found is not None:
                refuse_another_kind(resume.found, made_by)
            process.join_process_group(job.rank, device, is_launched=planning.is_launched(job.run_dir))
        started, lock = _agreed_start(job)
    except BaseException as error:  # noqa: BLE001 - whatever stops a rank is reported, and ends the process
        fail_before_meeting(error, rank=rank, debug=job.debug, run_dir=job.run_dir)

    run_dir = started.run_dir
    speaker = Speaker(rank, started, stderr_fd=os.dup(2), debug=job.debug)
    try:
        if not has_guard(os.environ):
            # Else the guard has heard it too, and `launch` says it.
            end_on_signals(lambda number: end_by_signal(number, speaker))
        with said_plainly(run_dir):
            process.open_logs(run_dir, job.rank)
        with said_plainly(run_dir), open_monitor(job.rank, resolved, run_dir, device) as monitor:
            result = train(
                job,
                resolved,
                data,
                run_dir,
                resume=resume,
                made_by=made_by,
                device=device,
                num_threads=num_threads,
                monitor=monitor,
                planned=planned,
                baseline=baseline,
            )
    except BaseException as error:  # noqa: BLE001
        fail_in_the_run(error, speaker)
    if lock is not None:
        lock.release()
    process.leave(end_status(job, result, stderr_fd=speaker.stderr_fd))


def read_baseline(job: Job, asked: ResolvedRun) -> Baseline | None:
    """The measured peak of the run that this one is compared with. Raises UserError where it cannot be."""
    if job.baseline is None:
        return None
    from dist_trainer.report import baseline

    return baseline.read_baseline(job.baseline, asked.run.model, asked.deepspeed)


def end_status(job: Job, result: Summary | None, *, stderr_fd: int) -> int:
    """The status of a run that came to its end: under --strict rank 0, which alone has a summary, says more than 0."""
    if not job.strict or result is None:
        return EXIT_OK
    from dist_trainer.report.verdict import strict_problem

    problem = strict_problem(result.verdict)
    if problem is None:
        return EXIT_OK
    say(f"dist_trainer: strict: {problem}", stream_fd=stderr_fd)
    return EXIT_TARGET_MISSED


def choose_cuda_allocator(memory: MemoryConfig) -> None:
    """Sets torch's CUDA allocator, which reads the environment as torch comes in, unless the user did."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    if not memory.expandable_segments or any(name in os.environ for name in names):
        return
    major, minor = importlib.metadata.version("torch").split(".")[:2]
    os.environ[names[0] if (int(major), int(minor)) >= (2, 9) else names[1]] = "expandable_segments:True"


def open_data(resolved: ResolvedRun, *, show_progress: bool) -> list[PhaseData]:
    """Opens the token files of every phase to train; prepares the default corpus first if it is not there yet.

    Raises UserError for data that is too short for a phase, before the phases in front of it have trained.
    """
    from dist_trainer.data.corpus import STANDARD_LIBRARY, standard_library_dataset
    from dist_trainer.data.sampler import num_windows
    from dist_trainer.data.tokens import has_split, open_tokens
    from dist_trainer.train.loop import PhaseData

    vocab_size = resolved.run.model.vocab_size
    opened = []
    for phase in resolved.phases:
        if phase.data == STANDARD_LIBRARY:
            path = standard_library_dataset(vocab_size, progress=show_progress and sys.stdout.isatty())
        else:
            path = Path(phase.data)
        training = open_tokens(path, "train", vocab_size)
        validation = None
        if resolved.run.evaluation.num_batches and has_split(path, "val"):
            validation = open_tokens(path, "val", vocab_size)
        for tokens in filter(None, (training, validation)):
            num_windows(tokens.num_tokens, phase.sequence_length, where=str(tokens.path))
        opened.append(PhaseData(training, validation))
    return opened


def describe_run(resolved: ResolvedRun, rank: RankInfo, data: list[PhaseData]) -> Made:
    """What makes this run's checkpoints."""
    facts = {
        phase.name: DataFacts(
            path=as_utf8(str(files.train.path)),
            num_tokens=files.train.num_tokens,
            fingerprint=files.train.fingerprint,
            tokenizer=files.train.info.tokenizer_sha256 if files.train.info else None,
        )
        for phase, files in zip(resolved.phases, data, strict=True)
    }
    return made_by_run(resolved, world_size=rank.world_size, data=facts)


def open_monitor(rank: RankInfo, resolved: ResolvedRun, run_dir: Path, device: DeviceFacts) -> RankMonitor:
    """What watches this rank's GPU from before the model is built to the end: this rank, or in a large run its host's
    first.
    """
    import torch.distributed as dist

    from dist_trainer.monitor import host
    from dist_trainer.monitor.memory import rank_device
    from dist_trainer.monitor.rank import RankSampler
    from dist_trainer.train import process

    records_dir, interval_s = run_dir / "records", resolved.run.memory.sample_every_s
    identity = rank_device(process.device_index(rank, device) if device.kind == "cuda" else None)
    if rank.world_size <= host.MAX_NUM_RANKS_ALONE:
        return RankSampler(records_dir, rank.rank, identity, interval_s)
    name = process.agree_on(secrets.token_hex(8) if rank.rank == 0 else None)
    place = host.Place(rank.rank, rank.local_rank, rank.local_world_size)
    return host.open_monitor(records_dir, place, identity, interval_s, name=name, meet=dist.barrier)


def train(
    job: Job,
    resolved: ResolvedRun,
    data: list[PhaseData],
    run_dir: Path,
    *,
    resume: Resume,
    made_by: Made,
    device: DeviceFacts,
    num_threads: int,
    monitor: RankMonitor,
    planned: Preflight | None,
    baseline: Baseline | None,
) -> Summary | None:
    """Trains, and on rank 0 sums up."""
    import torch
    import torch.distributed as dist
    from rich.console import Console

    from dist_trainer.data.workers import default_num_workers
    from dist_trainer.monitor import host
    from dist_trainer.monitor.allocator import AllocatorWatch
    from dist_trainer.monitor.memory import MemoryProbe
    from dist_trainer.report import summary
    from dist_trainer.train import checkpoint, hygiene, muon, op_builds, planning, process
    from dist_trainer.train.display import Display
    from dist_trainer.train.engine import build_engine
    from dist_trainer.train.loop import Recorder, Run, train_phases

    rank, is_first = job.rank.rank, job.rank.rank == 0
    display = Display(speaks=is_first)
    device_index = process.device_index(job.rank, device)
    probe = MemoryProbe(rank, torch.device("cuda", device_index) if device.kind == "cuda" else None, monitor)
    recorder = Recorder(run_dir / "records", rank, probe)
    if is_first:
        _write_resolved(resolved, run_dir)
        for line in _opening(resolved, job.rank, run_dir, device, num_threads):
            display.note(line)
        if planned is not None:
            for line in planning.keep(planned, run_dir):
                display.note(line)
        recorder.start(
            f"{resolved.run.name} on {job.rank.world_size} ranks",
            device=device.name,
            world_size=job.rank.world_size,
            argv=redacted_argv([sys.executable, "-m", "dist_trainer", *sys.argv[1:]]),
            versions={
                "dist_trainer": __version__,
                **{name: importlib.metadata.version(name) for name in ("torch", "deepspeed")},
            },
            unigram_entropy_nats=data[-1].train.unigram_entropy_nats,
            **slurm_facts(os.environ),
        )
        for notice in (*resolved.notices, *op_builds.notices()):
            display.note(f"notice     {notice}")
            recorder.event("notice", notice)

    allocator = AllocatorWatch.begin() if job.measure_allocator else None
    muon.import_uncompiled_unless_used(resolved.deepspeed)
    hygiene.end_imports()
    engine = build_engine(resolved, device_index=device_index)
    if allocator is not None:
        allocator.watch(engine)
    torch.manual_seed(resolved.run.seed + rank)
    for notice in resume.notices:
        display.note(f"notice     {notice}")
        recorder.event("notice", notice)
    position = Position()
    if resume.found is not None:
        found = resume.found
        # Another seed asks for other noise, not for that of the checkpoint.
        same_seed = found.card.made_by.run.get("seed") == resolved.run.seed
        position = checkpoint.load(engine, found, with_random_state=same_seed)
        changed = differences(found, made_by)
        display.note(f"resumed from {found.folder} at step {position.step}")
        for line in changed:
            display.note(f"changed    {line}")
        recorder.event("resume", str(found.folder), step=position.step, changed=changed)

    workers = resolved.run.data.num_workers
    run = Run(
        resolved=resolved,
        rank=job.rank,
        engine=engine,
        data=data,
        num_workers=workers
        if workers is not None
        else default_num_workers(count_host_cores(), job.rank.local_world_size),
        run_dir=run_dir,
        recorder=recorder,
        display=display,
        position=position,
        made_by=made_by,
        saved_step=position.step,
        max_steps=job.max_steps,
        last_checkpoint_s=time.monotonic(),
        allocator=allocator,
    )
    try:
        train_phases(run)
    finally:
        display.close()
    if job.rank.world_size > host.MAX_NUM_RANKS_ALONE:
        # The monitors of whole hosts wait for the last that their ranks have to say.
        dist.barrier()
    # Before the ranks meet, so that every sample is there when the summary is made.
    monitor.stop()
    dist.barrier()
    result = None
    if is_first:
        recorder.event("end", f"step {run.position.step}", step=run.position.step)
        result = summary.summarise(run_dir, baseline=baseline)
        summary.write(result, run_dir)
        width = max(100, shutil.get_terminal_size().columns)
        summary.show(result, run_dir, Console(highlight=False, width=width))
    engine.destroy()
    return result


def plan_run(job: Job, resolved: ResolvedRun, device: DeviceFacts) -> Preflight:
    """The bytes this run will need. Raises UserError where that is more than there is, unless the job says to force."""
    from dist_trainer.train.planning import plan_first

    return plan_first(job.request, resolved, job.rank, device, force=job.force)


def _refuse_to_measure_on(device: DeviceFacts) -> None:
    if device.kind != "cpu":
        raise UserError(
            "the CPU's allocator says nothing of a GPU",
            where="command line",
            key="--measure-allocator",
            found=device.name,
            hint="leave it out: torch's own peaks, which are exact, are in each rank's memory records",
        )


def _agreed_start(job: Job) -> tuple[Start, FolderLock | None]:
    """In the folder the user named, or one that rank 0 makes; the same on every rank. Rank 0 holds it from now on, and
    looks how many events are there before any rank goes on, which might write one.

    Raises UserError where another run holds it.
    """
    from dist_trainer.train import process

    mine = lock = None
    if job.rank.rank == 0:
        if job.run_dir is None:
            run_dir = run_dirs.create_next_run_dir(*names(job.request))
        else:
            run_dir = job.run_dir
            run_dirs.create_run_dir(run_dir)
        lock = FolderLock(
            run_dir,
            "ranks",
            launch_id=os.environ.get(LAUNCH_ID),
            say=lambda text: print(f"notice     {text}", flush=True),
        )
        mine = Start.now(run_dir)
    return process.agree_on(mine), lock


def _write_resolved(resolved: ResolvedRun, run_dir: Path) -> None:
    import json

    from dist_trainer.config import run as run_file

    folder = run_dir / "resolved"
    write_text(folder / "run.yaml", run_file.dump(resolved.run))
    write_text(folder / "ds_config.json", json.dumps(resolved.deepspeed, indent=2) + "\n")


def _opening(resolved: ResolvedRun, rank: RankInfo, run_dir: Path, device: DeviceFacts, num_threads: int) -> list[str]:
    from dist_trainer.config.optimisations import describe
    from dist_trainer.model.size import num_parameters
    from dist_trainer.units import format_count

    model = resolved.run.model
    ranks = "1 rank" if rank.world_size == 1 else f"{rank.world_size} ranks"
    threads = f", {num_threads} threads each" if device.kind == "cpu" else ""
    return [
        f"model      {resolved.run.name}: {format_count(num_parameters(model))} parameters, "
        f"{model.num_layers} layers x {model.hidden_size}, vocabulary {model.vocab_size}, "
        f"context {model.context_length}",
        f"world      {ranks} on {device.name} ({rank.source}){threads}",
        f"batch      {resolved.train_batch_size} sequences = {resolved.micro_batch} micro batch x "
        f"{resolved.accumulation} accumulation x {ranks}",
        f"deepspeed  {resolved.deepspeed_source}: "
        + ", ".join(f"{key} {value}" for key, value in describe(resolved.deepspeed).items()),
        *(f"filled     {one}" for one in resolved.filled),
        f"run        {run_dir}",
    ]
