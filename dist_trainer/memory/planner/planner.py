"""From a resolved run to its plan: the bytes of each rank, by phase, with the assumptions said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.memory.engines.keys import unmodelled
from dist_trainer.memory.engines.ledger import PARTS, Ledger, pinned
from dist_trainer.memory.engines.settings import Settings, read_settings
from dist_trainer.memory.plan import Figure, PhaseName, PhasePlan, Plan, RankPlan
from dist_trainer.memory.planner.caching_allocator import reserved_peak_bytes
from dist_trainer.memory.planner.simulate import simulate
from dist_trainer.memory.trace import kept
from dist_trainer.memory.trace.record import Trace, TraceSpec
from dist_trainer.units import MIB, format_gb

# What NVML sees and torch's allocator does not. Assumptions: no GPU was at hand to measure them on. Public figures run
# from 289 MiB on a 6 GB card to 855 MiB on an 80 GB card for everything outside a program's tensors.
CONTEXT_BYTES = 450 * MIB
CONTEXT_BAND_BYTES = (280 * MIB, 860 * MIB)
NCCL_BYTES = 150 * MIB
NCCL_BAND_BYTES = (60 * MIB, 600 * MIB)
# cuBLAS's workspace is taken from torch's allocator: 8 MiB and a bit, 32 MiB on Hopper.
CUBLAS_BYTES = 8519680
CUBLAS_BAND_BYTES = (0, 32 * MIB)

# How far plans lay from what the real engine allocated (see docs/memory.md).
ALLOCATED_BAND = 0.02
RESERVED_BAND = 0.06

SLACK = "allocator slack"
CONTEXT = "context"
WORKSPACE = "workspaces"


@dataclass(frozen=True)
class PlannedDevice:
    """What is planned for. `num_bytes` is its memory, None where it is not known."""

    kind: Literal["cpu", "cuda"]
    name: str | None = None
    num_bytes: int | None = None


def make_plan(
    resolved: ResolvedRun,
    *,
    world_size: int,
    device: PlannedDevice,
    ranks: tuple[int, ...] | None = None,
    sequence_length: int | None = None,
) -> Plan:
    """Plans the first and the last rank, or those asked for, at the longest sequence length of the run's phases."""
    settings = read_settings(resolved.deepspeed, cuda=device.kind == "cuda")
    length = sequence_length or max(phase.sequence_length for phase in resolved.phases)
    trace = kept.get(trace_spec(resolved, settings, sequence_length=length, cuda=device.kind == "cuda"))
    chosen = ranks if ranks is not None else tuple(sorted({0, world_size - 1}))
    targets = resolved.run.targets
    expandable = resolved.run.memory.expandable_segments
    return Plan(
        name=resolved.run.name,
        deepspeed=resolved.deepspeed_source,
        device=device.kind,
        device_name=device.name,
        device_bytes=device.num_bytes,
        target_bytes=targets.target_bytes if targets else None,
        baseline_bytes=targets.baseline_bytes if targets else None,
        world_size=world_size,
        micro_batch=settings.micro_batch,
        accumulation=settings.accumulation,
        sequence_length=length,
        ranks=tuple(plan_rank(trace, settings, rank, world_size, device, expandable=expandable) for rank in chosen),
        assumptions=_assumptions(settings, world_size, device, expandable),
        unmodelled=tuple(unmodelled(resolved.deepspeed)),
        upper_bounds=_upper_bounds(settings),
    )


def trace_spec(resolved: ResolvedRun, settings: Settings, *, sequence_length: int, cuda: bool) -> TraceSpec:
    model = resolved.run.model
    return TraceSpec(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_heads=model.num_heads,
        vocab_size=model.vocab_size,
        context_length=model.context_length,
        dropout=model.dropout,
        loss=model.loss,
        micro_batch=settings.micro_batch,
        sequence_length=sequence_length,
        # fp16 takes the bytes of bf16, and fp16 arithmetic is not everywhere on a CPU.
        dtype="fp32" if settings.dtype == "fp32" else "bf16",
        autocast="bf16" if settings.autocast else None,
        checkpointing=settings.checkpointing,
        num_checkpoints=settings.num_checkpoints,
        cpu_checkpointing=settings.cpu_checkpointing,
        cuda=cuda,
        efficient_linear=settings.stage == 3 and settings.memory_efficient_linear,
    )


def plan_rank(
    trace: Trace,
    settings: Settings,
    rank: int,
    world_size: int,
    device: PlannedDevice,
    *,
    expandable: bool,
    is_quick: bool = False,
    enough_bytes: int | None = None,
) -> RankPlan:
    """One rank's plan from a trace; `expandable` is how torch's CUDA allocator is set.

    For searches: `is_quick` simulates one step instead of two; where what is allocated goes beyond `enough_bytes`
    already, the allocator is not replayed.
    """
    cuda = device.kind == "cuda"
    simulation = simulate(
        trace, settings, rank=rank, world_size=world_size, cuda=cuda, keep_events=cuda, is_quick=is_quick
    )
    ledger = simulation.device
    phases = tuple(PhasePlan(phase, total, _named(live)) for phase, (total, live) in ledger.peaks.items())
    peak = max(phases, key=lambda phase: phase.allocated_bytes)
    host_bytes = 0
    if cuda:
        if trace.num_saved_on_host:
            host_bytes = trace.num_saved_on_host * pinned(trace.saved_on_host_bytes // trace.num_saved_on_host)
        host_bytes += max((total for total, _ in simulation.host.peaks.values()), default=0)
    allocated = _banded(peak.allocated_bytes, ALLOCATED_BAND)
    if not cuda:
        return RankPlan(rank, allocated, allocated, None, peak.phase, peak.parts, phases, host_bytes)
    reserved_bytes = peak.allocated_bytes + CUBLAS_BYTES
    if enough_bytes is None or reserved_bytes <= enough_bytes:
        reserved_bytes = max(_reserved(ledger, expandable) + CUBLAS_BYTES, reserved_bytes)
    reserved = Figure(
        reserved_bytes,
        max(peak.allocated_bytes, round(reserved_bytes * (1 - RESERVED_BAND)) - CUBLAS_BYTES),
        round(reserved_bytes * (1 + RESERVED_BAND)) + CUBLAS_BAND_BYTES[1],
    )
    outside = CONTEXT_BYTES + (NCCL_BYTES if world_size > 1 else 0)
    low = CONTEXT_BAND_BYTES[0] + (NCCL_BAND_BYTES[0] if world_size > 1 else 0)
    high = CONTEXT_BAND_BYTES[1] + (NCCL_BAND_BYTES[1] if world_size > 1 else 0)
    used = Figure(reserved_bytes + outside, reserved.low_bytes + low, reserved.high_bytes + high)
    parts = {
        **peak.parts,
        SLACK: reserved_bytes - CUBLAS_BYTES - peak.allocated_bytes,
        WORKSPACE: CUBLAS_BYTES,
        CONTEXT: outside,
    }
    return RankPlan(rank, allocated, reserved, used, peak.phase, parts, phases, host_bytes)


def _reserved(ledger: Ledger, expandable: bool) -> int:
    assert ledger.events is not None
    return reserved_peak_bytes(ledger.events, expandable=expandable)


def _named(live: list[int]) -> dict[str, int]:
    return {name: num_bytes for name, num_bytes in zip(PARTS, live, strict=True) if num_bytes}


def _banded(num_bytes: int, share: float) -> Figure:
    return Figure(num_bytes, round(num_bytes * (1 - share)), round(num_bytes * (1 + share)))


def peak_phase_bytes(plan: RankPlan, phase: PhaseName) -> int:
    """The allocated peak of one phase; 0 for a phase that never came."""
    return next((known.allocated_bytes for known in plan.phases if known.phase == phase), 0)


def _assumptions(settings: Settings, world_size: int, device: PlannedDevice, expandable: bool) -> tuple[str, ...]:
    if device.kind == "cpu":
        return ("a CPU: the bytes of torch's CPU allocator; the process itself takes some 0.5 GB more",)
    lines = [
        f"CUDA context: {format_gb(CONTEXT_BYTES)} "
        f"({format_gb(CONTEXT_BAND_BYTES[0])} to {format_gb(CONTEXT_BAND_BYTES[1])})",
        f"cuBLAS workspace: {format_gb(CUBLAS_BYTES)} (up to {format_gb(CUBLAS_BAND_BYTES[1])})",
        "allocator: torch's own for CUDA, with expandable segments " + ("on" if expandable else "off"),
        "attention: torch's fused kernels (flash or memory-efficient), which keep no [tokens, tokens] scores",
    ]
    if world_size > 1:
        lines.insert(
            1, f"NCCL: {format_gb(NCCL_BYTES)} ({format_gb(NCCL_BAND_BYTES[0])} to {format_gb(NCCL_BAND_BYTES[1])})"
        )
    if settings.optimizer == "foreach":
        lines.append("optimizer: torch's foreach update, whose temporaries are as large as the weights it updates")
    return tuple(lines)


def _upper_bounds(settings: Settings) -> tuple[str, ...]:
    lines = []
    if settings.compiles:
        lines.append("compile: the plan is of the uncompiled model; torch.compile fuses what it keeps, and takes less")
    if settings.autocast:
        lines.append("torch_autocast: casts that CUDA keeps and the CPU does not are counted by the CPU's list")
    return tuple(lines)
