"""The error of plans against what the real engine allocates: a matrix of settings, each measured on one rank."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dist_trainer.benchmark import kept
from dist_trainer.benchmark.measure import Measurement, Spec, resolve_spec
from dist_trainer.config.request import Precision, Request, Switches
from dist_trainer.memory.plan import RankPlan
from dist_trainer.memory.planner.planner import PlannedDevice, make_plan

STAGES = (0, 1, 2, 3)
WORLD_SIZES = (1, 2, 8, 64)
BUCKETS = (5_000_000, 500_000_000)
MAX_LIVE = (100_000, 1_000_000_000)
# The DeepSpeed file that the cases start from: it sets no ZeRO stage, no offload and no grad_accum_dtype.
BASE = "bf16"


@dataclass(frozen=True)
class Model:
    """A run file with overrides, and the sequence length and micro batch size to run it with."""

    name: str
    config: str
    sequence_length: int
    micro_batch: int
    settings: tuple[str, ...] = ()


# Large enough for states and activations to matter, small enough for seconds per case: 13.9M parameters.
MIDGET = Model(
    "6 layers x 384",
    "tiny",
    256,
    4,
    ("model.num_layers=6", "model.hidden_size=384", "model.num_heads=6", "model.vocab_size=8192"),
)
TINY = Model("tiny", "tiny", 256, 4)
SMALL = Model("small", "small", 1024, 1, ("model.dropout=0",))


@dataclass(frozen=True)
class Case:
    """One setting on one rank. `bucket` and `max_live` (stage 3; None: as in the file) are in elements."""

    model: Model = MIDGET
    stage: int = 0
    world_size: int = 1
    rank: int = 0
    bucket: int = 5_000_000
    overlap: bool = False
    max_live: int | None = None
    precision: Precision = "bf16"
    checkpointing: bool = True
    accumulation: int = 1

    @property
    def name(self) -> str:
        parts = [
            self.model.name,
            self.precision,
            f"stage {self.stage}",
            f"rank {self.rank} of {self.world_size}",
            f"bucket {_short(self.bucket)}",
            *(["overlap"] if self.overlap else []),
            *([] if self.max_live is None else [f"max_live {_short(self.max_live)}"]),
            f"checkpointing {'on' if self.checkpointing else 'off'}",
            f"accumulation {self.accumulation}",
        ]
        return ", ".join(parts)


def _short(number: int) -> str:
    """A power of ten in short: 500000000 -> '5e8'."""
    return f"{number:.0e}".replace("e+0", "e")


def zero_cases(
    stages: Sequence[int] = STAGES, world_sizes: Sequence[int] = WORLD_SIZES, buckets: Sequence[int] = BUCKETS
) -> Iterator[Case]:
    """Every stage, world size, bucket size, overlap on and off, first and last rank; then both values of `MAX_LIVE`."""
    for stage, world_size, bucket, overlap in itertools.product(stages, world_sizes, buckets, (False, True)):
        for rank in sorted({0, world_size - 1}):
            yield Case(stage=stage, world_size=world_size, rank=rank, bucket=bucket, overlap=overlap)
    if 3 in stages:
        for world_size, max_live, overlap in itertools.product(world_sizes, MAX_LIVE, (False, True)):
            yield Case(stage=3, world_size=world_size, overlap=overlap, max_live=max_live)


def precision_cases(models: Sequence[Model] = (TINY, SMALL)) -> Iterator[Case]:
    """World size 1 without ZeRO: each precision, with and without checkpointing and accumulation."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for model, precision, checkpointing, accumulation in itertools.product(models, precisions, (True, False), (1, 4)):
        yield Case(model=model, precision=precision, checkpointing=checkpointing, accumulation=accumulation)


@dataclass(frozen=True)
class Row:
    """A plan and its measurement, in bytes."""

    case: Case
    planned: RankPlan
    measured: Measurement

    @property
    def error(self) -> float:
        """(planned - measured) / measured, of the peak."""
        return self.planned.allocated.num_bytes / self.measured.peak_bytes - 1

    @property
    def phase_errors(self) -> dict[str, float]:
        """The same for the peak of each phase."""
        return {
            phase.phase: phase.allocated_bytes / self.measured.peaks_bytes[phase.phase] - 1
            for phase in self.planned.phases
            if phase.phase in self.measured.peaks_bytes
        }


def spec_of(case: Case, *, ds: str = BASE, settings: Sequence[str] = ()) -> Spec:
    """The case as a rank to measure: the file `ds`, with the case's ZeRO settings, then `settings`, applied to it."""
    zero = {
        "stage": case.stage,
        "reduce_bucket_size": case.bucket,
        "allgather_bucket_size": case.bucket,
        "overlap_comm": str(case.overlap).lower(),
    }
    if case.max_live is not None:
        zero |= {"stage3_max_live_parameters": case.max_live, "stage3_max_reuse_distance": case.max_live}
    of_case = (f"zero_optimization.{key}={value}" for key, value in zero.items())
    switches = Switches(
        micro_batch=case.model.micro_batch,
        accumulation=case.accumulation,
        precision=case.precision,
        checkpointing=case.checkpointing,
        fused=True,
    )
    request = Request(
        config=case.model.config, ds=ds, switches=switches, settings=(*case.model.settings, *of_case, *settings)
    )
    return Spec(request, rank=case.rank, world_size=case.world_size, sequence_length=case.model.sequence_length)


def compare(case: Case, *, ds: str = BASE, settings: Sequence[str] = ()) -> Row:
    """Plans and measures one case. A measurement that is not kept from before takes seconds."""
    spec = spec_of(case, ds=ds, settings=settings)
    resolved = resolve_spec(spec)
    plan = make_plan(
        resolved,
        world_size=case.world_size,
        device=PlannedDevice("cpu"),
        ranks=(case.rank,),
        sequence_length=spec.sequence_length,
    )
    return Row(case, plan.of(case.rank), kept.measured(spec, resolved))


def run(wanted: Sequence[Case], *, ds: str, settings: Sequence[str], say: Callable[[str], None]) -> list[Row]:
    """Compares the cases in order, and says each row as soon as it is there."""
    rows = []
    for number, case in enumerate(wanted, start=1):
        row = compare(case, ds=ds, settings=settings)
        rows.append(row)
        by_phase = ", ".join(f"{phase} {error:+.2%}" for phase, error in row.phase_errors.items())
        say(
            f"{number}/{len(wanted)} {case.name}: measured {row.measured.peak_bytes / 1e6:.1f} MB, "
            f"plan {row.error:+.2%} ({by_phase})"
        )
    return rows


def summary(rows: Sequence[Row], tolerance: float) -> str:
    errors = [abs(row.error) for row in rows]
    worst = max(rows, key=lambda row: abs(row.error))
    beyond = sum(error > tolerance for error in errors)
    return (
        f"{len(rows)} cases: median error {statistics.median(errors):.2%}, largest {max(errors):.2%} "
        f"({worst.case.name}); {beyond} beyond {tolerance:.1%}"
    )
