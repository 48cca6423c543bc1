"""The smallest change that would bring a plan under its limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from dist_trainer.config.request import Request, Switches
from dist_trainer.memory.engines.settings import Settings
from dist_trainer.memory.plan import Plan, needed
from dist_trainer.units import counted, format_gb

# Elements in a bucket: enough for full bandwidth, and 0.1 GB in 16-bit where DeepSpeed's default of 5e8 takes 1 GB.
SMALL_BUCKET = 50_000_000
MOST_RANKS_A_HOST = 8


@dataclass(frozen=True)
class Setup:
    """What is to run, on how many ranks. `max_ranks_a_host`: advice may not ask for more ranks on a host than that."""

    request: Request
    num_ranks: int
    num_ranks_a_host: int
    max_ranks_a_host: int


@dataclass(frozen=True)
class Change:
    """One step away from a setup: what to type, and what it costs. Only one change of each `kind` can be in force."""

    kind: str
    what: str
    cost: str
    typed: str
    switches: Switches = field(default_factory=Switches)
    settings: tuple[str, ...] = ()
    times_ranks: int = 1


@dataclass(frozen=True)
class TriedPlan:
    """A plan with changes in force, and whether it meets what is asked."""

    plan: Plan
    is_good: bool

    @property
    def needed_bytes(self) -> int:
        return needed(self.plan.worst).num_bytes


@dataclass(frozen=True)
class Suggestion:
    """Changes that together meet the limits, and the plan with them."""

    changes: tuple[Change, ...]
    plan: Plan

    def __str__(self) -> str:
        what = ", ".join(f"{change.what}: {change.cost}" for change in self.changes)
        return f"{what}; {format_gb(needed(self.plan.worst).num_bytes)}"

    @property
    def typed(self) -> str:
        return " ".join(change.typed for change in self.changes)


def changes(setup: Setup, settings: Settings, *, loss: str) -> list[Change]:
    """The possible changes to a setup, the least costly first."""
    return [
        *_buckets(settings),
        *_stage(settings, setup, 2, "no more communication"),
        *_computation(settings, loss),
        *_stage(settings, setup, 3, "half as much communication again"),
        *_ranks(setup),
        *_offload(settings),
        *_low_precision_states(settings),
    ]


def apply(request: Request, chosen: Sequence[Change]) -> Request:
    """The request with the changes applied."""
    for change in chosen:
        said = {name: value for name, value in vars(change.switches).items() if value is not None}
        request = replace(
            request,
            switches=replace(request.switches, **said),
            settings=(*request.settings, *change.settings),
        )
    return request


def nearest(
    candidates: Sequence[Change], try_out: Callable[[Sequence[Change]], TriedPlan | None], *, start_bytes: int
) -> Suggestion | None:
    """The smallest change with a good plan: the least costly single one, else as few together as possible; else None.

    `try_out` plans with changes applied; it returns None if they cannot be combined. Makes at most
    3 x len(candidates) trials.
    """
    possible: list[Change] = []
    for change in candidates:
        trial = try_out([change])
        if trial is None:
            continue
        if trial.is_good:
            return Suggestion((change,), trial.plan)
        possible.append(change)
    together: list[Change] = []
    least_bytes = start_bytes
    for change in possible:
        tried = [kept for kept in together if kept.kind != change.kind] + [change]
        trial = try_out(tried)
        if trial is None or trial.needed_bytes >= least_bytes:
            continue
        together, least_bytes = tried, trial.needed_bytes
        if trial.is_good:
            return _fewest(together, trial, try_out)
    return None


def _fewest(
    together: list[Change], trial: TriedPlan, try_out: Callable[[Sequence[Change]], TriedPlan | None]
) -> Suggestion:
    """Leaves out what is not needed, the costliest first."""
    for change in reversed(together[:-1]):
        fewer = [kept for kept in together if kept is not change]
        without = try_out(fewer)
        if without is not None and without.is_good:
            together, trial = fewer, without
    return Suggestion(tuple(together), trial.plan)


def _set(*settings: str) -> tuple[tuple[str, ...], str]:
    return settings, " ".join(f"--set {setting}" for setting in settings)


def _buckets(settings: Settings) -> Iterator[Change]:
    if settings.stage == 0:
        return
    if settings.reduce_bucket_size > SMALL_BUCKET:
        chosen, typed = _set("zero_optimization.reduce_bucket_size=5e7")
        yield Change("bucket", "reduce_bucket_size 5e7", "no cost to speak of", typed, settings=chosen)
    if settings.stage == 3 and settings.max_live > SMALL_BUCKET:
        chosen, typed = _set(
            "zero_optimization.stage3_max_live_parameters=5e7", "zero_optimization.stage3_max_reuse_distance=5e7"
        )
        yield Change("live", "stage3_max_live_parameters 5e7", "more gathering", typed, settings=chosen)
    if settings.overlap_comm:
        chosen, typed = _set("zero_optimization.overlap_comm=false")
        yield Change("overlap", "overlap_comm off", "communication no longer hidden", typed, settings=chosen)


def _stage(settings: Settings, setup: Setup, stage: int, cost: str) -> Iterator[Change]:
    if setup.num_ranks > 1 and settings.stage < stage:
        chosen, typed = _set(*_to_stage(settings, stage))
        yield Change("stage", f"ZeRO-{stage}", cost, typed, settings=chosen)


def _to_stage(settings: Settings, stage: int) -> list[str]:
    """The settings for the stage; from stage 0, which uses no buckets, also for small buckets."""
    wanted = [f"zero_optimization.stage={stage}"]
    if settings.stage == 0 and settings.reduce_bucket_size > SMALL_BUCKET:
        wanted.append("zero_optimization.reduce_bucket_size=5e7")
    return wanted


def _computation(settings: Settings, loss: str) -> Iterator[Change]:
    if loss == "full":
        chosen, typed = _set("model.loss=fused")
        yield Change("loss", "the fused loss", "nothing", typed, settings=chosen)
    if loss != "chunked" and settings.dtype == "fp32":
        chosen, typed = _set("model.loss=chunked")
        yield Change("loss", "the chunked loss", "the loss takes longer", typed, settings=chosen)
    if not settings.checkpointing:
        switches = Switches(checkpointing=True)
        yield Change("checkpointing", "checkpointing", "a third more computation", "--checkpointing", switches)
    if settings.micro_batch > 1:
        many = settings.micro_batch * settings.accumulation
        typed = f"--micro-batch 1 --accumulation {many}"
        switches = Switches(micro_batch=1, accumulation=many)
        yield Change("batch", "micro batch 1", "smaller matrices, the same tokens a step", typed, switches)
    if settings.dtype == "fp32":
        switches = Switches(precision="bf16")
        yield Change("precision", "bf16", "fewer digits in weights and activations", "--precision bf16", switches)


def _ranks(setup: Setup) -> Iterator[Change]:
    for times in (2, 4):
        a_host = times * setup.num_ranks_a_host
        if a_host <= setup.max_ranks_a_host:
            what = counted(times * setup.num_ranks, "GPU")
            yield Change("ranks", what, "more GPUs", f"--nproc-per-node {a_host}", times_ranks=times)


def _offload(settings: Settings) -> Iterator[Change]:
    if settings.offload_optimizer != "none":
        return
    wanted = ["zero_optimization.offload_optimizer.device=cpu"]
    if settings.stage == 0:
        wanted = [*_to_stage(settings, 2), *wanted]
    chosen, typed = _set(*wanted)
    yield Change("offload", "optimizer offload", "the update runs on the CPU", typed, settings=chosen)


def _low_precision_states(settings: Settings) -> Iterator[Change]:
    if settings.master_dtype != "fp32":
        return
    wanted = ["bf16.bf16_master_weights_and_grads=true", "bf16.bf16_optimizer_states=true"]
    if settings.stage == 0:
        wanted = [*_to_stage(settings, 2), *wanted]
    chosen, typed = _set(*wanted)
    yield Change(
        "states",
        "bf16 master weights and optimizer states",
        "it may train worse",
        f"--precision bf16 {typed}",
        Switches(precision="bf16"),
        chosen,
    )
