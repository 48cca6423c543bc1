"""What a rank finds out before it joins the others: files, checkpoint, device, plan and data, and mistakes in them."""

from __future__ import annotations

import importlib.metadata
import os
import signal
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dist_trainer.checkpoints.before_start import check_before_start
from dist_trainer.checkpoints.changed import data_facts, made_by, refuse_another_kind
from dist_trainer.checkpoints.find import Found, Resume
from dist_trainer.checkpoints.index import Made
from dist_trainer.cluster.rank import RankInfo
from dist_trainer.cluster.threads import let_threads_wait_briefly
from dist_trainer.config.adapt import DeviceFacts, offloads_to_nvme
from dist_trainer.config.resolve import ResolvedRun, resolve
from dist_trainer.config.run import MemoryConfig
from dist_trainer.errors import UserError
from dist_trainer.exchange.initial import Initial, check_initial, not_read
from dist_trainer.logs import quiet_deepspeed
from dist_trainer.streams import is_terminal
from dist_trainer.train.compile_cache import keep_compiled
from dist_trainer.train.job import RankJob
from dist_trainer.train.timeline import Timeline

if TYPE_CHECKING:
    from dist_trainer.memory.advice.preflight import Preflight
    from dist_trainer.memory.targets import Baseline
    from dist_trainer.train.loop import PhaseData
    from dist_trainer.train.matmul import Matmul


@dataclass(frozen=True)
class Prepared:
    """A run as this rank is to train it. `initial`: what it begins from, if it resumes from nothing and was asked to.
    `data`: by phase. `planned`: None on every rank but 0.
    """

    resolved: ResolvedRun
    resume: Resume
    initial: Initial | None
    data: list[PhaseData]
    made_by: Made
    device: DeviceFacts
    num_threads: int
    matmul: Matmul
    planned: Preflight | None
    baseline: Baseline | None

    @property
    def loads_weights(self) -> bool:
        """Whether there is anything that the run resumes or begins from."""
        return self.resume.found is not None or self.initial is not None

    @property
    def checkpoint(self) -> Found | None:
        """The one that the run resumes or begins from, if it is of this program."""
        return self.resume.found or (self.initial.found if self.initial else None)

    @property
    def seen(self) -> str:
        """What the run starts from, the same on every rank that sees the same files."""
        if self.resume.found is not None:
            return f"that of step {self.resume.found.index.position.step}"
        return self.initial.fingerprint if self.initial else "none"


def prepare(
    job: RankJob,
    timeline: Timeline,
    *,
    damaged: Mapping[Path, str] | None = None,
    knows_signals: Callable[[Collection[signal.Signals]], None] = lambda _: None,
) -> Prepared:
    """Checks files and checkpoint, sets what torch reads on import, imports torch, then finds device, plan and data.

    `damaged`: checkpoints that are not to be taken, and why. The ranks find out together, later, whether all bytes of a
    checkpoint are as they were written; where they are not, each prepares anew. `knows_signals` is called with the run
    file's stop signals as soon as it has been read.

    Raises UserError for the user's mistakes.
    """
    is_first = job.rank.rank == 0
    # Reports mistakes in the files and the checkpoint before torch is imported; the real device is asked afterwards.
    resume, asked = check_before_start(
        job.request,
        world_size=job.rank.world_size,
        resume=job.resume,
        run_dir=job.run_dir,
        with_files=False,
        damaged=damaged,
    )
    knows_signals([signal.Signals[f"SIG{name}"] for name in asked.run.checkpoints.stop_signals])
    initial = check_initial(job.init_from, resume, asked, asked_resume=job.resume, with_files=False, damaged=damaged)
    resume = replace(resume, notices=(*resume.notices, *not_read(job.init_from, resume)))
    baseline = read_baseline(job, asked)
    choose_cuda_allocator(asked.run.memory)
    let_threads_wait_briefly()
    not_kept = keep_compiled(asked.deepspeed, os.environ)
    timeline.begin("imports")
    from dist_trainer.train import matmul, process
    from dist_trainer.train.planning import plan_first

    with quiet_deepspeed():
        device = process.device_facts(asks_async_io=offloads_to_nvme(asked.deepspeed) is not None)
        timeline.begin("plan")
        if job.measure_allocator:
            _refuse_to_measure_on(device)
            process.quiet_profiler()
        num_threads = process.set_threads(job.rank)
        resolved = resolve(job.request, world_size=job.rank.world_size, device=device, done=resume.phases)
        planned = plan_first(job.request, resolved, job.rank, device, force=job.force) if is_first else None
        in_force, notice = matmul.choose(resolved, device, matmul.fast_here(device.kind))
        matmul.set_in_torch(in_force)
        resolved = replace(resolved, notices=(*resolved.notices, *filter(None, (notice, not_kept))))
        timeline.begin("data")
        data = open_data(resolved, show_progress=is_first)
        now = describe_run(resolved, job.rank, data)
        if resume.found is not None:
            refuse_another_kind(resume.found, now)
    return Prepared(resolved, resume, initial, data, now, device, num_threads, in_force, planned, baseline)


def read_baseline(job: RankJob, asked: ResolvedRun) -> Baseline | None:
    """The measured peak of the run named by --baseline, None without one. Raises UserError if it cannot be compared."""
    if job.baseline is None:
        return None
    from dist_trainer.report import baseline

    return baseline.read_baseline(job.baseline, asked.run.model, asked.deepspeed)


def choose_cuda_allocator(memory: MemoryConfig) -> None:
    """Selects torch's CUDA allocator by a variable that torch reads on import, unless the user has set it."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    if not memory.expandable_segments or any(name in os.environ for name in names):
        return
    major, minor = importlib.metadata.version("torch").split(".")[:2]
    os.environ[names[0] if (int(major), int(minor)) >= (2, 9) else names[1]] = "expandable_segments:True"


def open_data(resolved: ResolvedRun, *, show_progress: bool) -> list[PhaseData]:
    """Opens the token files of every phase to train; prepares the default corpus first if needed.

    Raises UserError if the data is too short for some phase, even a later one, before any phase has trained.
    """
    from dist_trainer.data.corpus import STANDARD_LIBRARY, standard_library_dataset
    from dist_trainer.data.sampler import num_windows
    from dist_trainer.data.tokens import has_split, open_tokens
    from dist_trainer.train.loop import PhaseData

    vocab_size = resolved.run.model.vocab_size
    opened = []
    for phase in resolved.phases:
        if phase.data == STANDARD_LIBRARY:
            path = standard_library_dataset(vocab_size, progress=show_progress and is_terminal(1))
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
    """The description of this run for its checkpoints."""
    facts = {phase.name: data_facts(files.train) for phase, files in zip(resolved.phases, data, strict=True)}
    return made_by(resolved, world_size=rank.world_size, data=facts)


def _refuse_to_measure_on(device: DeviceFacts) -> None:
    if device.kind != "cpu":
        raise UserError(
            "only torch's CPU allocator can be measured, and this run is on a GPU",
            where="command line",
            key="--measure-allocator",
            found=device.name,
            hint="leave it out: torch's own peaks, which are exact, are in each rank's memory records",
        )
