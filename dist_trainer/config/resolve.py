"""Resolves what the command line asked for into a complete and consistent run file, DeepSpeed JSON and phases."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.config import optimisations, overrides, run
from dist_trainer.config.adapt import DeviceFacts, adapt
from dist_trainer.config.deepspeed import resolve as deepspeed
from dist_trainer.config.deepspeed.keys import children
from dist_trainer.config.deepspeed.resolve import Filled
from dist_trainer.config.files import DEEPSPEED_FILE, RUN_FILE, check_kind, find_file
from dist_trainer.config.progress import Progress
from dist_trainer.config.request import Request
from dist_trainer.config.run import DataConfig, MemoryConfig, RunConfig
from dist_trainer.errors import UserError

BASELINE = "baseline"


@dataclass(frozen=True)
class Phase:
    """A phase and its length in optimizer steps, done ones included; `number` counts from 1 in the run file."""

    number: int
    name: str
    sequence_length: int
    steps: int
    tokens_per_step: int
    data: str


@dataclass(frozen=True)
class ResolvedRun:
    """The resolved run, which planner, engine and report all read.

    `phases`: those that this run trains. `total_steps`: of the whole run file, which the learning rate schedule
    follows. `notices`: lines for people about settings without effect, and about substitutes. `filled`: what the JSON
    left open.
    """

    run: RunConfig
    deepspeed: dict[str, Any]
    phases: tuple[Phase, ...]
    total_steps: int
    run_source: str
    deepspeed_source: str
    notices: tuple[str, ...]
    filled: tuple[Filled, ...] = ()

    @property
    def micro_batch(self) -> int:
        return int(self.deepspeed["train_micro_batch_size_per_gpu"])

    @property
    def accumulation(self) -> int:
        return int(self.deepspeed["gradient_accumulation_steps"])

    @property
    def train_batch_size(self) -> int:
        return int(self.deepspeed["train_batch_size"])


def resolve(
    request: Request, *, world_size: int, device: DeviceFacts, done: Mapping[str, Progress] | None = None
) -> ResolvedRun:
    """Reads both files, applies the overrides, fills what is "auto", and adapts the result to the device.

    `done`: how much of each phase a checkpoint has. The rest of a phase whose length is given in tokens may take
    another number of steps, because the batch may have changed. Raises UserError naming file, key and what to do; the
    same on every rank.
    """
    run_path, config, settings = _run_config(request)
    ds_name = _deepspeed_name(request, config)
    ds_path = _deepspeed_path(ds_name, run_path if ds_name == config.deepspeed and request.ds is None else None)
    source = str(ds_path)
    raw = deepspeed.read(ds_path)
    check_kind(ds_name, DEEPSPEED_FILE, raw, own=children()[""], others=RunConfig.model_fields)
    of_file, switched = raw, optimisations.apply(raw, request.switches)
    raw = switched
    for path, text in settings:
        raw = optimisations.set_path(raw, path, text)
    with overrides.naming_settings(request.settings, source):
        deepspeed.check(raw, source=source)
        phases, facts, resolved = _fill(
            raw, config, source=source, world_size=world_size, device=device, done=done or {}
        )
    notices = [
        *overrides.dropped_by_switches(of_file, switched, request.switches),
        *overrides.switches_set_again(request.switches, switched, raw),
        *overrides.settings_said_again(request.settings),
        *_idle_in_run_file(config, request, resolved),
        *deepspeed.warnings(raw, resolved, facts),
    ]
    with overrides.naming_settings(request.settings, source):
        try:
            adapted, instead = adapt(resolved, device)
        except UserError as error:
            error.where = source
            raise
    return ResolvedRun(
        run=config,
        deepspeed=adapted,
        phases=_selected(phases, request.phase, source=str(run_path)),
        total_steps=facts.total_steps,
        run_source=str(run_path),
        deepspeed_source=source,
        notices=(*notices, *instead),
        filled=tuple(deepspeed.filled(raw, resolved)),
    )


def _idle_in_run_file(config: RunConfig, request: Request, resolved: Mapping[str, Any]) -> list[str]:
    """A line for each key that the run file sets but that has no effect beside its other keys."""
    data, memory = config.data, config.memory
    reasons = {}
    # A default value that was written out asks for nothing, so nothing is said of it.
    if data.num_workers == 0 and data.prefetch_factor != DataConfig().prefetch_factor:
        reasons["data.prefetch_factor"] = "data.num_workers is 0"
    if all(phase.data is not None for phase in config.phases) and data.source != DataConfig().source:
        reasons["data.source"] = "every phase names its own data"
    if not resolved.get("disable_python_gc") and memory.gc_every_steps != MemoryConfig().gc_every_steps:
        reasons["memory.gc_every_steps"] = "Python collects by itself, for disable_python_gc is not on in the JSON"
    if request.seed is not None and any(setting.startswith("seed=") for setting in request.settings):
        reasons["--set seed"] = f"--seed {request.seed} comes after it"
    return [f"{key} does nothing: {why}" for key, why in reasons.items()]


def names(request: Request) -> tuple[str, str]:
    """The names of the run file and of the DeepSpeed file, as they appear in the name of a run's folder."""
    _, config, _ = _run_config(request)
    return config.name, Path(_deepspeed_name(request, config)).stem


def _run_config(request: Request) -> tuple[Path, RunConfig, list[tuple[str, str]]]:
    """The run file with its overrides, and the `--set`s that belong to the JSON."""
    path = find_file(request.config, RUN_FILE)
    raw = run.read(path)
    check_kind(request.config, RUN_FILE, raw, own=RunConfig.model_fields, others=children()[""])
    for_json = []
    for setting in request.settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UserError("cannot read this setting", where="--set", found=setting, expected="dotted.path=value")
        if key.split(".")[0] in RunConfig.model_fields:
            raw = optimisations.set_path(raw, key, text)
        else:
            for_json.append((key, text))
    if request.no_optimize and not any(setting.startswith("model.loss=") for setting in request.settings):
        raw = optimisations.set_path(raw, "model.loss", "full")
    if request.seed is not None:
        raw = {**raw, "seed": request.seed}
    with overrides.naming_settings(request.settings, str(path)):
        return path, run.check(raw, source=str(path)), for_json


def _deepspeed_path(name: str, run_path: Path | None) -> Path:
    """The file. `run_path`: the run file that names it, None where a switch does."""
    try:
        return find_file(name, DEEPSPEED_FILE)
    except UserError as error:
        if run_path is None:
            raise
        hint = "a path is taken from the working folder; say --ds for another file"
        raise UserError(
            error.problem, where=str(run_path), key="deepspeed", found=name, expected=error.expected, hint=hint
        ) from None


def _deepspeed_name(request: Request, config: RunConfig) -> str:
    if not request.no_optimize:
        return request.ds or config.deepspeed
    if request.ds is not None:
        raise UserError(
            "two DeepSpeed files are asked for",
            where="--no-optimize",
            found=f"--ds {request.ds}",
            hint=f"leave one of them out: --no-optimize means --ds {BASELINE}",
        )
    return BASELINE


def _fill(
    raw: Mapping[str, Any],
    config: RunConfig,
    *,
    source: str,
    world_size: int,
    device: DeviceFacts,
    done: Mapping[str, Progress],
) -> tuple[tuple[Phase, ...], deepspeed.Facts, dict[str, Any]]:
    """Fills what is "auto". The batch comes first: the steps of a phase given in tokens depend on it."""

    def facts_for(total_steps: int) -> deepspeed.Facts:
        return deepspeed.Facts(
            world_size=world_size,
            hidden_size=config.model.hidden_size,
            total_steps=total_steps,
            supports_bf16=device.supports_bf16,
        )

    draft = deepspeed.resolve(copy.deepcopy(dict(raw)), facts_for(1), source=source)
    phases = _phases(config, train_batch_size=int(draft["train_batch_size"]), done=done)
    facts = facts_for(sum(phase.steps for phase in phases))
    return phases, facts, deepspeed.resolve(copy.deepcopy(dict(raw)), facts, source=source)


def _phases(config: RunConfig, *, train_batch_size: int, done: Mapping[str, Progress]) -> tuple[Phase, ...]:
    phases = []
    for number, phase in enumerate(config.phases, start=1):
        tokens_per_step = train_batch_size * phase.sequence_length
        before = done.get(phase.name, Progress())
        tokens_left = max(0, (phase.tokens or 0) - before.tokens)
        steps = phase.steps or before.steps + math.ceil(tokens_left / tokens_per_step)
        source = phase.data or config.data.source
        phases.append(Phase(number, phase.name, phase.sequence_length, steps, tokens_per_step, source))
    return tuple(phases)


def _selected(phases: tuple[Phase, ...], number: int | None, *, source: str) -> tuple[Phase, ...]:
    if number is None:
        return phases
    if not 1 <= number <= len(phases):
        known = ", ".join(f"{phase.number} ({phase.name})" for phase in phases)
        raise UserError("no such phase", where=source, key="--phase", found=number, expected=f"one of {known}")
    return (phases[number - 1],)
