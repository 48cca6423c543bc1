"""One rank from its first line to its last, in order: prepare, join the others, train, leave with an exit status."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, NoReturn

from dist_trainer.checkpoints.folder import clear_leftovers
from dist_trainer.cluster.environments import LAUNCH_ID
from dist_trainer.cluster.folder_lock import FolderLock
from dist_trainer.config import run_dir as run_dirs
from dist_trainer.config.resolve import names
from dist_trainer.endings import Start
from dist_trainer.errors import EXIT_OK, EXIT_TARGET_MISSED
from dist_trainer.logs import quiet_deepspeed
from dist_trainer.streams import outlive_readers
from dist_trainer.train.before_meeting import Prepared, prepare
from dist_trainer.train.failure import (
    Speaker,
    announce_stop,
    end_before_meeting_by_signal,
    end_by_signal,
    fail_before_meeting,
    fail_in_the_run,
    say,
)
from dist_trainer.train.job import RankJob
from dist_trainer.train.preemption import Preemption, Stopped
from dist_trainer.train.signals import SignalThread
from dist_trainer.train.timeline import Timeline

if TYPE_CHECKING:
    from pathlib import Path

    from dist_trainer.report.summary import Summary


def start(job: RankJob, timeline: Timeline) -> NoReturn:
    """Runs the job and ends the process: 0, or the status of what went wrong, said by one rank. `timeline` has begun
    with the process.
    """
    rank = job.rank.rank
    outlive_readers()
    preemption = Preemption(lambda number: end_before_meeting_by_signal(number, rank))
    heard = SignalThread(preemption.hear, preemption.look)
    # During the imports the garbage collector frees nothing and takes a quarter of the time. `hygiene.end_imports`
    # turns it on again.
    gc.disable()
    try:
        # The first to import torch, after setting the variables that torch reads.
        prepared = prepare(job, timeline, knows_signals=heard.hear_also)
        from dist_trainer.train import planning, process
        from dist_trainer.train.shortage import said_plainly

        timeline.begin("rendezvous")
        with quiet_deepspeed():
            process.join_process_group(job.rank, prepared.device, is_launched=planning.is_launched(job.run_dir))
            process.stop_together(preemption, limit_s=prepared.resolved.run.checkpoints.stop_within_s)
            prepared = _with_whole_checkpoint(job, prepared, timeline)
        started, lock = _agreed_start(job)
    except BaseException as error:  # noqa: BLE001 - whatever stops a rank is reported, and ends the process
        timeline.keep_of_failed(job.run_dir, rank)
        fail_before_meeting(error, rank=rank, debug=job.debug, run_dir=job.run_dir)

    run_dir = started.run_dir
    speaker = Speaker(rank, started, stderr_fd=os.dup(2), debug=job.debug)
    preemption.end = lambda number: end_by_signal(number, speaker)
    saves = prepared.resolved.run.checkpoints.saves_at_all
    preemption.tell = lambda within_s: announce_stop(within_s, speaker, saves=saves)
    preemption.is_over = started.has_end
    try:
        with said_plainly(run_dir):
            timeline.begin("opening")
            timeline.keep(started, rank)
            process.open_logs(run_dir, job.rank)
        from dist_trainer.train.monitoring import open_monitor

        with said_plainly(run_dir), open_monitor(job.rank, prepared.resolved, started, prepared.device) as monitor:
            timeline.begin("imports")
            # Imports DeepSpeed here, so that what it logs goes to the rank's log, and the memory it takes is sampled.
            from dist_trainer.train.training import train

            result = train(job, prepared, run_dir, monitor, timeline, preemption)
    except Stopped as stopped:
        end_by_signal(stopped.number, speaker)
    except BaseException as error:  # noqa: BLE001
        fail_in_the_run(error, speaker)
    if lock is not None:
        lock.release()
    process.leave(end_status(job, result, stderr_fd=speaker.stderr_fd))


def _with_whole_checkpoint(job: RankJob, prepared: Prepared, timeline: Timeline) -> Prepared:
    """The same, or if files of its checkpoint are not as they were written, prepared anew from one that is whole.

    Collective. Raises UserError if there is none, or the user named that one.
    """
    from dist_trainer.train.checkpoints.verifying import damage_of

    damaged: dict[Path, str] = {}
    while prepared.loads_weights:
        timeline.begin("resume")
        found = damage_of(prepared.checkpoint, seen=prepared.seen)
        if not found:
            break
        damaged |= found
        prepared = prepare(job, timeline, damaged=damaged)
    return prepared


def end_status(job: RankJob, result: Summary | None, *, stderr_fd: int) -> int:
    """The exit status of a run that came to its end: 0, or under --strict EXIT_TARGET_MISSED if the verdict is not that
    the target was met. Only rank 0 has a summary, so only it can end with another status than 0.
    """
    if not job.strict or result is None:
        return EXIT_OK
    from dist_trainer.report.verdict import strict_problem

    problem = strict_problem(result.verdict)
    if problem is None:
        return EXIT_OK
    say(f"dist_trainer: strict: {problem}", stream_fd=stderr_fd)
    return EXIT_TARGET_MISSED


def _agreed_start(job: RankJob) -> tuple[Start, FolderLock | None]:
    """The start that all ranks share, in the folder that the user named or rank 0 makes; on rank 0 also its lock.

    Collective. Rank 0 locks the folder from now on, and notes the length of events.jsonl before any rank can write an
    event. Raises UserError if another run holds the folder.
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
        for line in clear_leftovers(run_dir / "checkpoints"):
            print(f"notice     {line}", flush=True)
        mine = Start.now(run_dir)
    return process.agree_on(mine), lock
