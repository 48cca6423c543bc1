"""Searches the settings for those that fit a card and a target, and ranks them by what they cost.

The choices: ZeRO stage, offload, precision, activation checkpointing and micro batch; accumulation follows from the
global batch. Memory never falls as the micro batch grows, so for each of the other choices the largest micro batch that
fits is found by bisection, and speaks for all below and above it.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dist_trainer.config.deepspeed_rules import block
from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.errors import UserError
from dist_trainer.memory import trace as traces
from dist_trainer.memory.cost import ASSUMED, Cost, estimate
from dist_trainer.memory.plan import RankPlan, needed
from dist_trainer.memory.planner import PlannedDevice, plan_rank, trace_spec
from dist_trainer.memory.settings import Settings, read_settings
from dist_trainer.memory.trace import ALLOC, Trace
from dist_trainer.units import format_gb

# A micro batch no one asks for: a prime that divides no shape, so that the sizes it divides are those that grow with
# the micro batch.
PROBE = 1009
NUM_SHOWN = 5
LARGEST_MICRO_BATCH = 256


@dataclass(frozen=True)
class Choice:
    """One setting. `offload`: 'none', 'optimizer' or 'all'; `precision`: 'fp32', 'bf16', 'fp16' or 'bf16 states'."""

    stage: int
    offload: str
    precision: str
    checkpointing: bool
    micro_batch: int

    def __str__(self) -> str:
        parts = [f"ZeRO-{self.stage}", self.precision, f"micro batch {self.micro_batch}"]
        parts.append("checkpointing" if self.checkpointing else "no checkpointing")
        if self.offload != "none":
            parts.append("optimizer offload" if self.offload == "optimizer" else "optimizer and parameter offload")
        return ", ".join(parts)


@dataclass(frozen=True)
class Candidate:
    """A choice with its memory (of the rank that needs most) and its estimated cost."""

    choice: Choice
    rank: RankPlan
    cost: Cost
    config: dict[str, Any]

    @property
    def needed_bytes(self) -> int:
        return needed(self.rank).num_bytes


@dataclass(frozen=True)
class Fit:
    """`ranking`: what fits, cheapest first. `rejected`: what stands one step from the winner, with why not.

    `nearest`: where nothing fits, what comes nearest.
    """

    limit_bytes: int
    limit_name: str
    ranking: tuple[Candidate, ...]
    rejected: tuple[tuple[str, str], ...]
    nearest: Candidate | None
    num_candidates: int
    seconds: float

    @property
    def winner(self) -> Candidate | None:
        return self.ranking[0] if self.ranking else None


class _Search:
    """Plans choices of one run, each once."""

    def __init__(self, resolved: ResolvedRun, world_size: int, limit_bytes: int, device: PlannedDevice) -> None:
        self.resolved = resolved
        self.world_size = world_size
        self.limit_bytes = limit_bytes
        self.device = device
        self.sequence_length = max(phase.sequence_length for phase in resolved.phases)
        self._known: dict[Choice, Candidate] = {}
        self._traces: dict[traces.TraceSpec, Trace] = {}

    def plan(self, choice: Choice, accumulation: int) -> Candidate:
        known = self._known.get(choice)
        if known is not None:
            return known
        config = configure(self.resolved.deepspeed, choice, accumulation, self.world_size)
        settings = read_settings(config, cuda=True)
        spec = trace_spec(self.resolved, settings, sequence_length=self.sequence_length, cuda=True)
        trace = self._trace(spec)
        found = Candidate(choice, self._worst(trace, settings), self._cost(trace, settings), config)
        self._known[choice] = found
        return found

    def _worst(self, trace: Trace, settings: Settings) -> RankPlan:
        """The first and the last rank need most; the last is looked at only if the first fits."""
        first = self._rank(trace, settings, 0)
        if self.world_size == 1 or needed(first).num_bytes > self.limit_bytes:
            return first
        last = self._rank(trace, settings, self.world_size - 1)
        return max(first, last, key=lambda rank: needed(rank).num_bytes)

    def _rank(self, trace: Trace, settings: Settings, rank: int) -> RankPlan:
        expandable = self.resolved.run.memory.expandable_segments
        return plan_rank(
            trace,
            settings,
            rank,
            self.world_size,
            self.device,
            expandable=expandable,
            is_quick=True,
            enough_bytes=self.limit_bytes,
        )

    def _cost(self, trace: Trace, settings: Settings) -> Cost:
        return estimate(
            settings,
            num_parameters=sum(parameter.numel for parameter in trace.parameters),
            num_layers=self.resolved.run.model.num_layers,
            sequence_length=self.sequence_length,
            world_size=self.world_size,
        )

    def _trace(self, spec: traces.TraceSpec) -> Trace:
        if spec not in self._traces:
            kept = traces.load(spec)
            if kept is None and spec.loss == "full":
                # The chunks of a chunked loss depend on the micro batch: that one is traced as it is.
                probe_spec = replace(spec, micro_batch=PROBE)
                probe = self._traces.setdefault(probe_spec, traces.get(probe_spec))
                kept = scaled(probe, spec.micro_batch)
            self._traces[spec] = kept or traces.get(spec)
        return self._traces[spec]


def scaled(probe: Trace, micro_batch: int) -> Trace:
    """The trace at another micro batch, from one at PROBE: what PROBE divides grows with it, the rest stays."""
    events = tuple(
        (kind, first, size // PROBE * micro_batch, part) if kind == ALLOC and size % PROBE == 0 else event
        for event in probe.events
        for kind, first, size, part in (event,)
    )
    return replace(probe, events=events, saved_on_host_bytes=probe.saved_on_host_bytes // PROBE * micro_batch)


def search(
    resolved: ResolvedRun,
    *,
    world_size: int,
    device: PlannedDevice,
    global_batch: int,
    host_bytes: int | None = None,
    ranks_a_host: int = 1,
    has_bf16: bool = True,
) -> Fit:
    """Finds what fits the device and the run file's target. `global_batch` is in sequences for each optimizer step.

    Raises UserError for a global batch that the ranks do not divide, and a device whose memory is not known.
    """
    started_s = time.perf_counter()
    limit_bytes, limit_name = _limit(resolved, device)
    micro_batches = _micro_batches(global_batch, world_size)
    engine = _Search(resolved, world_size, limit_bytes, device)

    def plan(choice: Choice) -> Candidate:
        return engine.plan(choice, global_batch // (world_size * choice.micro_batch))

    def fits(candidate: Candidate) -> bool:
        on_host = candidate.rank.host_bytes * ranks_a_host
        return candidate.needed_bytes <= limit_bytes and (host_bytes is None or on_host <= host_bytes)

    fitting: list[Candidate] = []
    smallest: list[Candidate] = []
    num_candidates = 0
    for choice in _choices(resolved, "bf16" if has_bf16 else "fp16"):
        num_candidates += len(micro_batches)
        low, high = 0, len(micro_batches)
        while low < high:
            middle = (low + high) // 2
            if fits(plan(replace(choice, micro_batch=micro_batches[middle]))):
                low = middle + 1
            else:
                high = middle
        if low == 0:
            smallest.append(plan(replace(choice, micro_batch=micro_batches[0])))
        fitting += [plan(replace(choice, micro_batch=size)) for size in micro_batches[max(0, low - 2) : low]]
    ranking = tuple(sorted(fitting, key=_rank_key))
    nearest = min(smallest, key=lambda candidate: candidate.needed_bytes, default=None) if not ranking else None
    rejected = tuple(_neighbours(ranking[0], plan, fits, limit_bytes, limit_name, micro_batches)) if ranking else ()
    return Fit(
        limit_bytes,
        limit_name,
        ranking,
        rejected,
        nearest,
        num_candidates,
        time.perf_counter() - started_s,
    )


def _rank_key(candidate: Candidate) -> tuple[bool, float, int]:
    """16-bit masters change what is learned: they come after all that do not, however cheap they are."""
    return candidate.choice.precision == "bf16 states", candidate.cost.total_s, candidate.needed_bytes


def _limit(resolved: ResolvedRun, device: PlannedDevice) -> tuple[int, str]:
    if device.num_bytes is None:
        raise UserError(
            "the memory of the GPU is not known",
            where="--fit",
            hint="say --gpu NAME, or --gpu-memory 24GiB",
        )
    targets = resolved.run.targets
    if targets is not None and targets.target_bytes < device.num_bytes:
        return targets.target_bytes, "the target"
    return device.num_bytes, "the card"


def _micro_batches(global_batch: int, world_size: int) -> list[int]:
    if global_batch % world_size:
        raise UserError(
            "the ranks do not divide the global batch",
            where="--global-batch",
            found=global_batch,
            expected=f"a multiple of {world_size}",
            hint=f"say --global-batch {-(-global_batch // world_size) * world_size}",
        )
    share = global_batch // world_size
    return [size for size in (2**power for power in range(9)) if share % size == 0 and size <= LARGEST_MICRO_BATCH]


def _choices(resolved: ResolvedRun, half: str) -> Iterator[Choice]:
    """Every choice but the micro batch. Optimizer offload and 16-bit states need ZeRO, parameter offload stage 3."""
    offloads = {0: ("none",), 1: ("none", "optimizer"), 2: ("none", "optimizer"), 3: ("none", "optimizer", "all")}
    for stage in range(4):
        for offload, checkpointing in itertools.product(offloads[stage], (False, True)):
            precisions = ["fp32", half]
            if half == "bf16" and stage and offload == "none":
                precisions.append("bf16 states")
            for precision in precisions:
                yield Choice(stage, offload, precision, checkpointing, micro_batch=1)


def configure(base: Mapping[str, Any], choice: Choice, accumulation: int, world_size: int) -> dict[str, Any]:
    """A complete DeepSpeed JSON of the choice: optimizer, schedule and clipping are the base's."""
    config = copy.deepcopy(dict(base))
    config["train_micro_batch_size_per_gpu"] = choice.micro_batch
    config["gradient_accumulation_steps"] = accumulation
    config["train_batch_size"] = choice.micro_batch * accumulation * world_size
    for name in ("fp16", "bf16", "data_types", "torch_autocast", "activation_checkpointing", "communication_data_type"):
        config.pop(name, None)
    if choice.precision == "fp16":
        config["fp16"] = {"enabled": True}
    else:
        config["bf16"] = {"enabled": choice.precision != "fp32"}
    if choice.precision == "bf16 states":
        config["bf16"] |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    if choice.stage == 2 and choice.precision in ("bf16", "fp16"):
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if choice.checkpointing:
        config["activation_checkpointing"] = {"number_checkpoints": None, "cpu_checkpointing": False}
    config["zero_optimization"] = _zero_block(choice)
    params = dict(block(block(config, "optimizer"), "params"))
    if choice.offload == "none":
        if str(block(config, "optimizer").get("type", "")).lower() in ("adam", "adamw"):
            params |= {"torch_adam": True, "fused": True}
    else:
        for name in ("torch_adam", "fused", "foreach"):
            params.pop(name, None)
    if "optimizer" in config:
        config["optimizer"] = {**config["optimizer"], "params": params}
    return config


def _zero_block(choice: Choice) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": choice.stage}
    if choice.stage:
        zero |= {"reduce_bucket_size": 20_000_000, "overlap_comm": False, "contiguous_gradients": True}
    if choice.stage in (1, 2):
        zero["allgather_bucket_size"] = 50_000_000
    if choice.stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": 5_000_000,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_max_live_parameters": 50_000_000,
            "stage3_max_reuse_distance": 50_000_000,
        }
    if choice.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if choice.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return zero


def _neighbours(
    winner: Candidate,
    plan: Any,
    fits: Any,
    limit_bytes: int,
    limit_name: str,
    micro_batches: list[int],
) -> Iterator[tuple[str, str]]:
    """Each choice one step from the winner, and why it is not the winner."""
    choice = winner.choice
    steps: list[tuple[str, Choice]] = []
    place = micro_batches.index(choice.micro_batch)
    for size in micro_batches[max(0, place - 1) : place] + micro_batches[place + 1 : place + 2]:
        steps.append((f"micro batch {size}", replace(choice, micro_batch=size)))
    checkpointing = "no checkpointing" if choice.checkpointing else "checkpointing"
    steps.append((checkpointing, replace(choice, checkpointing=not choice.checkpointing)))
    lowest = 1 if choice.offload == "optimizer" else 0
    stages = (
        () if choice.offload == "all" or choice.precision == "bf16 states" else (choice.stage - 1, choice.stage + 1)
    )
    steps += [(f"ZeRO-{stage}", replace(choice, stage=stage)) for stage in stages if lowest <= stage <= 3]
    if choice.offload != "none":
        steps.append(("no offload", replace(choice, offload="none")))
    elif choice.stage:
        steps.append(("optimizer offload", replace(choice, offload="optimizer")))
    if choice.precision == "bf16":
        steps.append(("fp32", replace(choice, precision="fp32")))
        if choice.stage and choice.offload == "none":
            steps.append(("bf16 states", replace(choice, precision="bf16 states")))
    for label, other in steps:
        candidate = plan(other)
        if not fits(candidate):
            over = candidate.needed_bytes - limit_bytes
            if over <= 0:
                yield label, f"the host's memory does not hold {format_gb(candidate.rank.host_bytes)} a rank"
                continue
            part, num_bytes = max(candidate.rank.parts.items(), key=lambda item: item[1])
            yield (
                label,
                f"{format_gb(candidate.needed_bytes)}, over {limit_name}'s {format_gb(limit_bytes)} by "
                f"{format_gb(over)}; peak in {candidate.rank.peak_phase}, most of it {part} ({format_gb(num_bytes)})",
            )
        elif other.precision == "bf16 states":
            yield label, "fits, but 16-bit masters may learn less well"
        else:
            slower = candidate.cost.total_s / winner.cost.total_s - 1
            yield label, f"fits in {format_gb(candidate.needed_bytes)}, but costs {100 * slower:.0f}% more time"


def write_config(candidate: Candidate, path: Path) -> None:
    """The winner as a complete DeepSpeed JSON. Raises UserError when the file cannot be written."""
    try:
        path.write_text(json.dumps(candidate.config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError("cannot write the DeepSpeed JSON", where=str(path), found=error.strerror) from error


def render(fit: Fit) -> str:
    """The search as a person reads it."""
    limit = f"{fit.limit_name}: {format_gb(fit.limit_bytes)}"
    lines = [f"{fit.num_candidates} candidates in {fit.seconds:.1f} s, against {limit}"]
    if fit.winner is None:
        lines.append("nothing fits")
        if fit.nearest is not None:
            over = fit.nearest.needed_bytes - fit.limit_bytes
            lines.append(
                f"nearest    {fit.nearest.choice}: {format_gb(fit.nearest.needed_bytes)}, over by {format_gb(over)}"
            )
            parts = sorted(fit.nearest.rank.parts.items(), key=lambda item: -item[1])[:4]
            lines.append("made of    " + ", ".join(f"{name} {format_gb(size)}" for name, size in parts))
            lines.append("try        more ranks, a shorter sequence length, --set model.loss=chunked, or a larger card")
        return "\n".join(lines) + "\n"
    lines += [
        "",
        f"winner     {fit.winner.choice}, {format_gb(fit.winner.needed_bytes)}",
        "",
        "ranking (cost of a step)",
    ]
    seen: set[Choice] = set()
    for candidate in fit.ranking:
        key = replace(candidate.choice, micro_batch=0)
        if key in seen:
            continue
        seen.add(key)
        ratio = candidate.cost.total_s / fit.winner.cost.total_s
        lines.append(f"  {ratio:5.2f} x  {format_gb(candidate.needed_bytes):>9}  {candidate.choice}")
        if len(seen) == NUM_SHOWN:
            break
    lines += ["", "why not"]
    lines += [f"  {label}: {reason}" for label, reason in fit.rejected]
    lines += ["", "assumed", f"  {ASSUMED}"]
    return "\n".join(lines) + "\n"
