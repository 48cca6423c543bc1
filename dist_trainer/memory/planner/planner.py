"""From a resolved run to its plan: the bytes of each rank, by phase, with the assumptions said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.memory import checkpoint_size
from dist_trainer.memory.engines.keys import unmodelled
from dist_trainer.memory.engines.ledger import PARTS, pinned
from dist_trainer.memory.engines.settings import Settings, read_settings
from dist_trainer.memory.gpus import LARGE_WORKSPACE_BYTES, cublas_workspace_bytes
from dist_trainer.memory.plan import Figure, PhasePlan, Plan, RankPlan
from dist_trainer.memory.planner.caching_allocator import reserved_peak_bytes
from dist_trainer.memory.planner.simulate import simulate
from dist_trainer.memory.trace import kept
from dist_trainer.memory.trace.record import Trace, TraceSpec
from dist_trainer.model.size import num_parameters
from dist_trainer.units import MIB, format_gb

# What NVML sees and torch's allocator does not. Assumptions: no GPU was at hand to measure them on. Public figures run
# from 289 MiB on a 6 GB card to 855 MiB on an 80 GB card for everything outside a program's tensors.
CONTEXT_BYTES = 450 * MIB
CONTEXT_BAND_BYTES = (280 * MIB, 860 * MIB)
# NCCL: a fixed part, and buffers for each channel of each algorithm: the ring; over several hosts also the tree.
NCCL_OWN_BYTES = 54 * MIB
NCCL_CHANNEL_BYTES = 8 * MIB
NCCL_CHANNELS = 12
NCCL_CHANNELS_BAND = (1, 64)

# How far plans lay from what the real engine allocated (see docs/memory.md).
ALLOCATED_BAND = 0.02
RESERVED_BAND = 0.06

SLACK = "allocator slack"
CONTEXT = "context"
WORKSPACE = "workspaces"
CHECKPOINT = "copy for checkpoints"


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
    num_hosts: int = 1,
) -> Plan:
    """Plans `ranks` (by default the first and the last) at `sequence_length` (by default the longest of all phases)."""
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
        ranks=tuple(
            plan_rank(
                trace,
                settings,
                rank,
                world_size,
                device,
                expandable=expandable,
                num_hosts=num_hosts,
                copy_bytes=_copy_bytes(resolved, settings, world_size, device),
            )
            for rank in chosen
        ),
        assumptions=_assumptions(settings, world_size, device, expandable, num_hosts),
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
        pad_vocab=model.pad_vocab,
    )


def plan_rank(
    trace: Trace,
    settings: Settings,
    rank: int,
    world_size: int,
    device: PlannedDevice,
    *,
    expandable: bool,
    num_hosts: int = 1,
    copy_bytes: int = 0,
    is_quick: bool = False,
    enough_bytes: int | None = None,
) -> RankPlan:
    """One rank's plan from a trace; `expandable` is how torch's CUDA allocator is set, `copy_bytes` what the rank keeps
    on the host for checkpoints.

    For searches: `is_quick` simulates one step instead of two. If the allocated bytes alone exceed `enough_bytes`, the
    allocator is not replayed, and the reserved bytes are a lower bound.
    """
    cuda = device.kind == "cuda"
    simulation = simulate(
        trace, settings, rank=rank, world_size=world_size, cuda=cuda, keep_events=cuda, is_quick=is_quick
    )
    ledger = simulation.device
    held = {CHECKPOINT: copy_bytes} if copy_bytes and not cuda else {}
    phases = tuple(
        PhasePlan(phase, total + sum(held.values()), {**_named(live), **held})
        for phase, (total, live) in ledger.peaks.items()
    )
    peak = max(phases, key=lambda phase: phase.allocated_bytes)
    host_bytes = copy_bytes if cuda else 0
    if cuda:
        if trace.num_saved_on_host:
            host_bytes = trace.num_saved_on_host * pinned(trace.saved_on_host_bytes // trace.num_saved_on_host)
        host_bytes += max((total for total, _ in simulation.host.peaks.values()), default=0)
    allocated = _banded(peak.allocated_bytes, ALLOCATED_BAND)
    if not cuda:
        return RankPlan(rank, allocated, allocated, None, peak.phase, peak.parts, phases, host_bytes)
    workspace = cublas_workspace_bytes(device.name)
    reserved_bytes = peak.allocated_bytes + workspace
    late_bytes = 0
    if enough_bytes is None or reserved_bytes <= enough_bytes:
        assert ledger.events is not None
        reserved_bytes = max(reserved_peak_bytes(ledger.events, expandable=expandable) + workspace, reserved_bytes)
        if settings.overlap_comm and settings.stage and not is_quick:
            late_bytes = reserved_peak_bytes(ledger.events, expandable=expandable, is_late=True) + workspace
    # A card that is not named may be a Hopper or a Blackwell, with a larger workspace.
    unknown = 0 if device.name is not None else LARGE_WORKSPACE_BYTES - workspace
    reserved = Figure(
        reserved_bytes,
        max(peak.allocated_bytes, round(reserved_bytes * (1 - RESERVED_BAND)) - workspace),
        round(max(reserved_bytes, late_bytes) * (1 + RESERVED_BAND)) + unknown,
    )
    nccl = nccl_bytes(num_hosts) if world_size > 1 else Figure(0, 0, 0)
    outside = CONTEXT_BYTES + nccl.num_bytes
    low, high = CONTEXT_BAND_BYTES[0] + nccl.low_bytes, CONTEXT_BAND_BYTES[1] + nccl.high_bytes
    used = Figure(reserved_bytes + outside, reserved.low_bytes + low, reserved.high_bytes + high)
    parts = {
        **peak.parts,
        SLACK: reserved_bytes - workspace - peak.allocated_bytes,
        WORKSPACE: workspace,
        CONTEXT: outside,
    }
    return RankPlan(rank, allocated, reserved, used, peak.phase, parts, phases, host_bytes)


def _copy_bytes(resolved: ResolvedRun, settings: Settings, world_size: int, device: PlannedDevice) -> int:
    checkpoints = resolved.run.checkpoints
    if not checkpoints.background or not checkpoints.within_phases:
        return 0
    return checkpoint_size.copy_bytes(
        settings, num_parameters(resolved.run.model), world_size, pinned=device.kind == "cuda"
    )


def nccl_bytes(num_hosts: int) -> Figure:
    """What NCCL takes of each GPU: an assumption, with a band from the fewest to the most channels it may open."""
    ways = 1 if num_hosts == 1 else 2
    low, high = (NCCL_OWN_BYTES + ways * count * NCCL_CHANNEL_BYTES for count in NCCL_CHANNELS_BAND)
    return Figure(NCCL_OWN_BYTES + ways * NCCL_CHANNELS * NCCL_CHANNEL_BYTES, low, high)


def _named(live: list[int]) -> dict[str, int]:
    return {name: num_bytes for name, num_bytes in zip(PARTS, live, strict=True) if num_bytes}


def _banded(num_bytes: int, share: float) -> Figure:
    return Figure(num_bytes, round(num_bytes * (1 - share)), round(num_bytes * (1 + share)))


def _assumptions(
    settings: Settings, world_size: int, device: PlannedDevice, expandable: bool, num_hosts: int
) -> tuple[str, ...]:
    if device.kind == "cpu":
        return ("a CPU: the bytes of torch's CPU allocator; the process itself takes some 0.5 GB more",)
    lines = [
        f"CUDA context: {format_gb(CONTEXT_BYTES)} "
        f"({format_gb(CONTEXT_BAND_BYTES[0])} to {format_gb(CONTEXT_BAND_BYTES[1])})",
        _workspace(device),
        "allocator: torch's own for CUDA, with expandable segments " + ("on" if expandable else "off"),
        "attention: torch's fused kernels (flash or memory-efficient), which keep no [tokens, tokens] scores",
    ]
    if world_size > 1:
        nccl = nccl_bytes(num_hosts)
        where = "one host" if num_hosts == 1 else f"{num_hosts} hosts"
        lines.insert(
            1,
            f"NCCL: {format_gb(nccl.num_bytes)} ({format_gb(nccl.low_bytes)} to {format_gb(nccl.high_bytes)}), "
            f"for {NCCL_CHANNELS} channels on {where}",
        )
    if settings.overlap_comm and settings.stage:
        lines.append(
            "overlap_comm: blocks of the streams for communication have pools of their own; the band reaches to where "
            "each freed block is reused one reduction later"
        )
    if settings.pins_optimizer or settings.pins_param or settings.cpu_checkpointing:
        lines.append("pinned host memory: torch's allocator takes the next power of two for each block")
    if settings.optimizer == "foreach":
        lines.append("optimizer: torch's foreach update, whose temporaries are as large as the weights it updates")
    return tuple(lines)


def _workspace(device: PlannedDevice) -> str:
    line = f"cuBLAS workspace: {format_gb(cublas_workspace_bytes(device.name))}"
    return line if device.name is not None else f"{line} ({format_gb(LARGE_WORKSPACE_BYTES)} on Hopper and Blackwell)"


def _upper_bounds(settings: Settings) -> tuple[str, ...]:
    lines = []
    if settings.compiles:
        lines.append("compile: the plan is of the uncompiled model; torch.compile fuses what it keeps, and takes less")
    if settings.autocast:
        lines.append("torch_autocast: casts that CUDA keeps and the CPU does not are counted by the CPU's list")
    return tuple(lines)
