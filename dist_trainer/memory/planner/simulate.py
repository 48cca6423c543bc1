"""Plays a trace through an engine: init, then whole optimizer steps, as a ledger of every allocation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dist_trainer.memory.engines.ledger import Block, Ledger
from dist_trainer.memory.engines.settings import Settings
from dist_trainer.memory.engines.stage0 import Engine, Fp16Engine, UnfusedFp16Engine
from dist_trainer.memory.engines.stage3 import Zero3Engine
from dist_trainer.memory.engines.stages12 import Bf16Engine, Zero12Engine
from dist_trainer.memory.planner.caching_allocator import ROUNDING
from dist_trainer.memory.trace.record import (
    ALLOC,
    BACKWARD,
    BACKWARD_ENTER,
    BACKWARD_EXIT,
    FORWARD_ENTER,
    FORWARD_EXIT,
    FREE,
    GRADIENT,
    Trace,
)


@dataclass(frozen=True)
class Simulation:
    """`device` and `host`: what one rank allocates there. On a CPU they are one ledger."""

    device: Ledger
    host: Ledger


def simulate(
    trace: Trace,
    settings: Settings,
    *,
    rank: int,
    world_size: int,
    cuda: bool,
    keep_events: bool = False,
    is_quick: bool = False,
) -> Simulation:
    """Plays two optimizer steps: the first allocates the optimizer's states, the second begins with them.

    `is_quick`: one step that begins with the states, which gives the same peaks in half the time.
    """
    device = Ledger(ROUNDING if cuda else 1, keep_events=keep_events)
    host = Ledger(1, keep_events=False) if cuda else device
    engine = engine_class(settings)(
        trace, settings, device, host, rank=rank, world_size=world_size, built_on_device=not cuda
    )
    engine.init()
    in_place = sums_in_place(trace) if _owns_gradients(trace, settings) else {}
    saved = saved_weights(trace, settings) if settings.stage == 3 else {}
    # train/hygiene.py empties the cache before the first step.
    device.empty_cache()
    # The first micro batch and the last differ; those between them do not.
    micro_batches = min(settings.accumulation, 3 if settings.stage == 3 else 2)
    if is_quick:
        engine.add_states()
        # From its second micro batch on stage 3 knows the order of modules, and prefetches.
        micro_batches = max(micro_batches, 2 if settings.stage == 3 else 1)
    for _ in range(1 if is_quick else 2):
        for number in range(micro_batches):
            _micro_batch(trace, engine, device, in_place, saved, is_boundary=number == micro_batches - 1)
        device.enter("step")
        host.enter("step")
        engine.step()
        engine.end_step()
    return Simulation(device, host)


def engine_class(settings: Settings) -> type[Engine]:
    """The way DeepSpeed trains under these settings (engine.py, _do_optimizer_sanity_check)."""
    if settings.stage == 0:
        if settings.dtype == "fp32":
            return Engine
        return Fp16Engine if settings.deepspeed_fused else UnfusedFp16Engine
    if settings.stage == 3:
        return Zero3Engine
    accumulates_in_fp32 = settings.dtype == "bf16" and settings.grad_accum_dtype == "fp32"
    if settings.stage == 1 and accumulates_in_fp32 and settings.offload_optimizer == "none":
        return Bf16Engine
    return Zero12Engine


def _owns_gradients(trace: Trace, settings: Settings) -> bool:
    """Whether autograd gets the output embedding's gradient as a tensor of its own, and not as a view."""
    loss_by_linear = any(module == 0 for module, _ in trace.linears)
    efficient = settings.stage == 3 and settings.memory_efficient_linear
    return not loss_by_linear or efficient or settings.autocast is not None


def sums_in_place(trace: Trace) -> dict[int, int]:
    """Where autograd sums two gradients of one parameter (tied weights) in place: the sum's storage in the trace -> the
    storage of the gradient made first, which the sum reuses in a real run.

    torch's linear layers give autograd a view as the weight's gradient, so that the sum needs a third storage. The
    fused and the chunked loss, DeepSpeed's linear layer of stage 3 (zero/linear.py) and autocast's cast back give it a
    tensor of its own, to which it adds the second one in place; but not while it is observed as by the tracer, so the
    trace has a third storage.
    """
    sizes: dict[int, int] = {}
    freed: list[int] = []
    found: dict[int, int] = {}
    newest = None
    for kind, first, second, _ in trace.events:
        if kind == ALLOC:
            sizes[first], newest, freed = second, first, []
        elif kind == FREE:
            freed.append(first)
        elif kind == GRADIENT and second == newest:
            summands = [storage for storage in freed if sizes[storage] == sizes[second]]
            if len(summands) == 2:
                # Storages are numbered as they are made.
                found[second] = min(summands)
    return found


def saved_weights(trace: Trace, settings: Settings) -> dict[int, int]:
    """The forward passes in which autograd saves the module's weight: index of the FORWARD_ENTER event -> weight.

    A saved weight stays in memory even after stage 3 has released it. torch's linear layer saves a view of the gathered
    weight, or under autocast its 16-bit copy instead; DeepSpeed's (zero/linear.py) saves the parameter itself, which
    holds no gathered memory, except in a pass that checkpointing recomputes, for it keeps what was saved.
    """
    efficient, casts = settings.memory_efficient_linear, settings.autocast is not None
    weights = dict(trace.linears)
    found: dict[int, int] = {}
    entered: dict[int, int] = {}
    begin = len(trace.events)
    for number, (kind, module, _, _) in enumerate(trace.events):
        if kind == BACKWARD:
            begin = number
        elif kind == FORWARD_ENTER:
            entered[module] = number
        # Decided when the backward pass ends, because a recomputed forward pass begins only after the backward pass
        # has. The whole model has no BACKWARD_EXIT.
        elif kind == (BACKWARD_EXIT if module else BACKWARD_ENTER) and module in weights:
            is_recomputed = entered[module] > begin
            if (efficient or not casts) if is_recomputed else not (efficient or casts):
                found[entered[module]] = weights[module]
    return found


def _micro_batch(
    trace: Trace,
    engine: Engine,
    ledger: Ledger,
    in_place: Mapping[int, int],
    saved: Mapping[int, int],
    *,
    is_boundary: bool,
) -> None:
    ledger.enter("forward")
    engine.begin_micro_batch(is_boundary=is_boundary)
    alloc, free = ledger.alloc, ledger.free
    live: dict[int, Block] = {}
    for number, (kind, first, second, third) in enumerate(trace.events):
        if kind == ALLOC:
            live[first] = live.pop(in_place[first]) if first in in_place else alloc(second, third)
        elif kind == FREE:
            block = live.pop(first, None)
            if block is not None:
                free(block)
        elif kind == GRADIENT:
            engine.gradient(first, live.pop(second))
        elif kind == FORWARD_ENTER:
            engine.forward_enter(first)
            if number in saved:
                engine.saves_weight(first, saved[number])
        elif kind == FORWARD_EXIT:
            engine.forward_exit(first)
        elif kind == BACKWARD_ENTER:
            engine.backward_enter(first)
        elif kind == BACKWARD_EXIT:
            engine.backward_exit(first)
        elif kind == BACKWARD:
            ledger.enter("backward")
    for block in live.values():
        free(block)
    engine.end_backward()
