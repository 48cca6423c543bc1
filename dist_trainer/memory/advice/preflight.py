"""Planning around a run: the plan of a request, advice if it exceeds a limit, and the check before a run starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dist_trainer.config.adapt import ANY_DEVICE, DeviceFacts
from dist_trainer.config.request import Switches
from dist_trainer.config.resolve import ResolvedRun, resolve
from dist_trainer.config.run import RunConfig
from dist_trainer.errors import UserError
from dist_trainer.memory.advice import nearest, why
from dist_trainer.memory.advice.nearest import Change, Setup, Suggestion, TriedPlan
from dist_trainer.memory.advice.outcome import (
    HostMemory,
    Standing,
    device_standing,
    host_standing,
    plan_line,
    target_standing,
)
from dist_trainer.memory.engines.settings import read_settings
from dist_trainer.memory.plan import PLAN_ON_GPU_FILE, Plan, needed, write_plan
from dist_trainer.memory.planner.planner import PlannedDevice, make_plan
from dist_trainer.model.size import num_parameters
from dist_trainer.units import counted, format_gb


@dataclass(frozen=True)
class Case:
    """Everything that a plan depends on. `host`: the memory of one host, None if not known."""

    setup: Setup
    facts: DeviceFacts
    device: PlannedDevice
    host: HostMemory | None = None

    def resolved(self) -> ResolvedRun:
        return resolve(self.setup.request, world_size=self.setup.num_ranks, device=self.facts)

    def changed(self, changes: Sequence[Change]) -> Case:
        """The case with the changes applied; more ranks go onto the same hosts."""
        times = 1
        for change in changes:
            times *= change.times_ranks
        setup = replace(
            self.setup,
            request=nearest.apply(self.setup.request, changes),
            num_ranks=times * self.setup.num_ranks,
            num_ranks_a_host=times * self.setup.num_ranks_a_host,
        )
        host = replace(self.host, num_ranks=times * self.host.num_ranks) if self.host else None
        return replace(self, setup=setup, host=host)

    def plan(self, resolved: ResolvedRun | None = None, ranks: tuple[int, ...] | None = None) -> Plan:
        """Plans `ranks` (by default the first and the last) of the run; `resolved` saves resolving it again."""
        return make_plan(
            resolved or self.resolved(),
            world_size=self.setup.num_ranks,
            device=self.device,
            ranks=ranks,
            num_hosts=-(-self.setup.num_ranks // self.setup.num_ranks_a_host),
        )


@dataclass(frozen=True)
class Preflight:
    """What is said before a run. `plan` is None if none could be made; a notice then says why. `on_gpu`: for a run on a
    CPU that has a target, the plan of the same run on GPUs.
    """

    plan: Plan | None
    line: str | None
    notices: tuple[str, ...] = ()
    on_gpu: Plan | None = None

    def write(self, run_dir: Path) -> None:
        if self.plan is not None:
            write_plan(self.plan, run_dir)
        if self.on_gpu is not None:
            write_plan(self.on_gpu, run_dir, PLAN_ON_GPU_FILE)


def preflight(case: Case, *, force: bool, resolved: ResolvedRun | None = None) -> Preflight:
    """Plans a run that is about to start. `resolved`: the resolved run, if already known.

    Raises UserError if the figure itself, not only the top of its band, exceeds the memory there is, unless `force`. A
    plan that cannot be made stops no run.
    """
    try:
        resolved = resolved or case.resolved()
        plan = case.plan(resolved)
        on_gpu = _on_gpu(case, plan)
    except Exception as error:  # noqa: BLE001 - a run that would work must not fail because its plan did
        return Preflight(None, None, (f"no plan: {type(error).__name__}: {error}".splitlines()[0],))
    over = limiting(plan, case.host)
    if over is not None and over[1].state == "over" and not force:
        raise _refusal(case, resolved, plan, *over)
    line = plan_line(plan, case.host)
    if on_gpu is not None:
        line += f"; on GPUs it would be {plan_line(on_gpu, None)}"
    return Preflight(plan, line, tuple(_notices(plan, case.host)), on_gpu)


def _on_gpu(case: Case, plan: Plan) -> Plan | None:
    if plan.device == "cuda" or plan.target_bytes is None:
        return None
    return replace(case, facts=ANY_DEVICE, device=PlannedDevice("cuda"), host=None).plan()


def limiting(plan: Plan, host: HostMemory | None) -> tuple[str, Standing] | None:
    """The memory that can stop a run (the GPU's, on a CPU the host's): its name, the plan against it. None: unknown."""
    standing = device_standing(plan) if plan.device == "cuda" else host_standing(plan, host)
    if standing is None:
        return None
    return ("the GPU's memory" if plan.device == "cuda" else "the host's memory"), standing


def suggest(
    case: Case, resolved: ResolvedRun, plan: Plan, is_good: Callable[[Plan, HostMemory | None], bool]
) -> Suggestion | None:
    """The smallest change to the case whose plan `is_good`, found by planning; None if there is none."""
    settings = read_settings(resolved.deepspeed, cuda=plan.device == "cuda")
    candidates = nearest.changes(case.setup, settings, loss=resolved.run.model.loss)
    known: dict[frozenset[str], TriedPlan | None] = {}

    def try_out(chosen: Sequence[Change]) -> TriedPlan | None:
        key = frozenset(change.what for change in chosen)
        if key not in known:
            changed = case.changed(chosen)
            try:
                made = changed.plan()
            except UserError:
                known[key] = None
            else:
                known[key] = TriedPlan(made, is_good(made, changed.host))
        return known[key]

    return nearest.nearest(candidates, try_out, start_bytes=needed(plan.worst).num_bytes)


def explain(resolved: ResolvedRun, plan: Plan, *, limit_bytes: int, limit_name: str) -> list[str]:
    """The arithmetic behind a plan that exceeds a limit."""
    settings = read_settings(resolved.deepspeed, cuda=plan.device == "cuda")
    count = num_parameters(resolved.run.model)
    return list(why.arithmetic(plan, settings, count, limit_bytes=limit_bytes, limit_name=limit_name))


def dearer_than_baseline(case: Case, resolved: ResolvedRun, plan: Plan) -> str | None:
    """A line if an optimised setting needs more on a GPU than the baseline (fp32, no optimisation, one GPU)."""
    least_bytes = 16 * num_parameters(resolved.run.model)  # weights, gradients and two moments, in fp32
    if plan.device == "cpu" or plan.worst.allocated.num_bytes < least_bytes or case.setup.request.no_optimize:
        return None
    own_keys = RunConfig.model_fields
    kept = tuple(setting for setting in case.setup.request.settings if setting.split(".")[0].split("=")[0] in own_keys)
    request = replace(case.setup.request, ds=None, no_optimize=True, switches=Switches(), settings=kept)
    setup = replace(case.setup, request=request, num_ranks=1, num_ranks_a_host=1)
    base = replace(case, setup=setup)
    base_resolved = base.resolved()
    if base_resolved.deepspeed_source == resolved.deepspeed_source:
        return None
    ours, theirs = needed(plan.worst).num_bytes, needed(base.plan(base_resolved).worst).num_bytes
    if ours <= theirs:
        return None
    settings = read_settings(resolved.deepspeed, cuda=True)
    dtype = "fp32" if settings.dtype == "fp32" else "16-bit"
    where = "one GPU" if plan.world_size == 1 else f"{plan.world_size} GPUs"
    return (
        f"this takes more than doing nothing: {format_gb(ours)} with DeepSpeed in {dtype} on {where}, "
        f"{format_gb(theirs)} in plain fp32 on one GPU (--no-optimize)"
    )


def _refusal(case: Case, resolved: ResolvedRun, plan: Plan, name: str, standing: Standing) -> UserError:
    many = case.host.num_ranks if plan.device == "cpu" and case.host is not None else 1
    hint = "--force starts the run all the same"

    def is_good(made: Plan, host: HostMemory | None) -> bool:
        found = limiting(made, host)
        return found is not None and found[1].state != "over"

    lines = explain(resolved, plan, limit_bytes=standing.limit_bytes // many, limit_name=name)
    suggestion = suggest(case, resolved, plan, is_good)
    if suggestion is not None:
        hint = f"{suggestion.typed} ({suggestion}); or {hint}"
    who = "a GPU" if plan.device == "cuda" else f"for {counted(many, 'rank')} on a host"
    return UserError(
        f"the run needs {format_gb(standing.needed.num_bytes)} {who}, peak in {plan.worst.peak_phase}: it does not fit",
        where="memory",
        expected="\n            ".join([f"at most {format_gb(standing.limit_bytes)}, which is {name}", *lines]),
        hint=hint,
    )


def _notices(plan: Plan, host: HostMemory | None) -> list[str]:
    lines = []
    found = limiting(plan, host)
    if found is not None and found[1].state != "under":
        name, standing = found
        lines.append(
            f"the plan is over {name}: {format_gb(standing.needed.num_bytes)} of {format_gb(standing.limit_bytes)}"
            if standing.state == "over"
            else f"the plan fits {name}, but its band does not: up to {format_gb(standing.needed.high_bytes)} "
            f"of {format_gb(standing.limit_bytes)}"
        )
    on_host = host_standing(plan, host) if plan.device == "cuda" else None
    if on_host is not None and on_host.state == "over":
        lines.append(
            f"what is offloaded may not fit the host: {format_gb(on_host.needed.num_bytes)} "
            f"of {format_gb(on_host.limit_bytes)}"
        )
    target = target_standing(plan)
    if target is not None and target.state == "over":
        lines.append("the target would be missed: `plan` with the same switches says what would meet it")
    return lines
