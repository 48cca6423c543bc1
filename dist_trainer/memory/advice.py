"""Why a plan is over its limit, by arithmetic, and the smallest change that would bring it under."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from dist_trainer.config.request import Request, Switches
from dist_trainer.memory.plan import Plan, needed
from dist_trainer.memory.settings import Settings
from dist_trainer.units import format_count, format_gb

# A bucket of this many elements is enough for bandwidth, and costs 0.1 GB in 16-bit where DeepSpeed's 5e8 costs 1 GB.
SMALL_BUCKET = 50_000_000
MOST_RANKS_A_HOST = 8


@dataclass(frozen=True)
class Setup:
    """What is to run, on how many ranks. `max_ranks_a_host`: no more can be had; the number itself is fixed then."""

    request: Request
    num_ranks: int
    num_ranks_a_host: int
    max_ranks_a_host: int


@dataclass(frozen=True)
class Change:
    """One step away from a setup: what to type for it, and what it costs. Of one `kind` only one is in force."""

    kind: str
    what: str
    cost: str
    typed: str
    switches: Switches = field(default_factory=Switches)
    settings: tuple[str, ...] = ()
    times_ranks: int = 1


@dataclass(frozen=True)
class Trial:
    """A plan with changes in force, and whether it meets what is asked."""

    plan: Plan
    is_good: bool

    @property
    def needed_bytes(self) -> int:
        return needed(self.plan.worst).num_bytes


@dataclass(frozen=True)
class Suggestion:
    """Changes that together meet the limit, and the plan with them."""

    changes: tuple[Change, ...]
    plan: Plan

    def __str__(self) -> str:
        what = ", ".join(f"{change.what}: {change.cost}" for change in self.changes)
        return f"{what}; {format_gb(needed(self.plan.worst).num_bytes)}"

    @property
    def typed(self) -> str:
        return " ".join(change.typed for change in self.changes)


@dataclass(frozen=True)
class HeldStates:
    """Bytes a parameter that one rank's device holds of the model's states: `parts` name -> (bytes, over how many)."""

    parts: dict[str, tuple[float, int]]

    @property
    def per_parameter(self) -> float:
        return sum(size / ranks for size, ranks in self.parts.values())

    def __str__(self) -> str:
        words = (
            f"{size:g} {name}" + (f" / {ranks}" if ranks > 1 else "") for name, (size, ranks) in self.parts.items()
        )
        return " + ".join(words)


def held_states(settings: Settings, world_size: int, *, with_gradients: bool) -> HeldStates:
    """What is held through a step (ZeRO paper, Rajbhandari et al. 2020, section 3.1, with DeepSpeed's own choices).

    From stage 1 on DeepSpeed keeps a master copy also of fp32 weights. What is offloaded is not on the device.
    """
    parts: dict[str, tuple[float, int]] = {}
    stage = settings.stage
    if settings.offload_param == "none" or stage < 3:
        parts["weights"] = (settings.weight_bytes, world_size if stage == 3 else 1)
    if with_gradients:
        parts["gradients"] = (settings.accum_bytes, world_size if stage >= 2 else 1)
    if settings.offload_optimizer == "none":
        sharded = world_size if stage >= 1 else 1
        if stage >= 1 or settings.dtype != "fp32":
            parts["master"] = (settings.master_bytes, sharded)
        if settings.states_per_parameter:
            parts["moments"] = (settings.state_bytes, sharded)
    return HeldStates(parts)


def arithmetic(
    plan: Plan, settings: Settings, num_parameters: int, *, limit_bytes: int, limit_name: str
) -> Iterator[str]:
    """Lines that say why the plan is over the limit: what is held whatever else is done, and what ZeRO can take off."""
    held = held_states(settings, plan.world_size, with_gradients=False)
    held_bytes = round(held.per_parameter * num_parameters)
    where = "one GPU" if plan.world_size == 1 else f"each of {plan.world_size} GPUs"
    bits = "fp32" if settings.dtype == "fp32" else "16-bit"
    line = (
        f"{bits} {plan.name} on {where} holds {held.per_parameter:.4g} bytes a parameter ({held}) x "
        f"{format_count(num_parameters)} = {format_gb(held_bytes)} before its gradients; "
        f"{limit_name} is {format_gb(limit_bytes)}"
    )
    yield line + (": it cannot be met so" if held_bytes > limit_bytes else "")
    if settings.stage and plan.world_size == 1:
        yield f"ZeRO-{settings.stage} on 1 rank takes nothing off the model states: there is nobody to share them with"
    elif settings.stage:
        share = most_saved(settings, plan.world_size)
        if share > 0:
            yield (
                f"ZeRO-{settings.stage} on {plan.world_size} ranks can take at most {share:.1%} off the model states"
            )
    worst = plan.worst
    largest = sorted(worst.parts, key=lambda name: worst.parts[name], reverse=True)[:3]
    made_of = ", ".join(f"{name} {format_gb(worst.parts[name])}" for name in largest)
    yield f"the peak is in {worst.peak_phase}, and most of it is {made_of}"


def most_saved(settings: Settings, world_size: int) -> float:
    """The share of the model states (weights, gradients, master, moments) that the stage takes off one rank, at most.

    What offload takes off as well is not counted.
    """
    here = replace(settings, offload_optimizer="none", offload_param="none")
    without = replace(here, stage=0, master_dtype="fp32")
    whole = held_states(without, 1, with_gradients=True).per_parameter
    return 1 - held_states(here, world_size, with_gradients=True).per_parameter / whole


def changes(setup: Setup, settings: Settings, *, loss: str) -> list[Change]:
    """The steps that may be taken from a setup, those that cost least first."""
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
    """The request with the changes in force."""
    for change in chosen:
        said = {name: value for name, value in vars(change.switches).items() if value is not None}
        request = replace(
            request,
            switches=replace(request.switches, **said),
            settings=(*request.settings, *change.settings),
        )
    return request


def nearest(
    candidates: Sequence[Change], try_out: Callable[[Sequence[Change]], Trial | None], *, start_bytes: int
) -> Suggestion | None:
    """The smallest change that is good: the cheapest single one, else the fewest of them together; None: none is.

    `try_out` plans with changes in force, None where they cannot go together. At most 3 x len(candidates) trials.
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


def _fewest(together: list[Change], trial: Trial, try_out: Callable[[Sequence[Change]], Trial | None]) -> Suggestion:
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
    """The stage; from stage 0, where buckets played no part, with buckets that are no larger than they need be."""
    wanted = [f"zero_optimization.stage={stage}"]
    if settings.stage == 0 and settings.reduce_bucket_size > SMALL_BUCKET:
        wanted.append("zero_optimization.reduce_bucket_size=5e7")
    return wanted


def _computation(settings: Settings, loss: str) -> Iterator[Change]:
    if loss != "chunked":
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
            what = f"{times * setup.num_ranks} GPUs"
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
