"""The estimated time of a setting: good enough to rank settings, not to predict seconds.

The GPU's figures are its vendor's (`gpus.speeds`), of which only a fraction is reached. For an unknown GPU, and for the
links between GPUs, the constants below are assumed, the same for every setting, so that costs can be compared.

Sources: 6N FLOPs per token for forward and backward and 2N for one forward (Kaplan et al. 2020, section 2.1; attention
scores, the same for all settings, are left out). A ring all-reduce moves 2(W-1)/W of the data, reduce-scatter and
all-gather half of that each (Rajbhandari et al. 2020, ZeRO, section 7). When data is sent, and what offload moves:
deepspeed/runtime/zero/stage_1_and_2.py and stage3.py of 0.19.8.
"""

from __future__ import annotations

from dataclasses import dataclass

from dist_trainer.memory.engines.settings import Settings
from dist_trainer.memory.gpus import Speeds

# Fractions of a GPU's peaks that training reaches: arithmetic in 16-bit and in fp32, and memory.
HALF_SHARE = 0.4
SINGLE_SHARE = 0.6
MEMORY_SHARE = 0.8
# Assumed: an unknown GPU; then, for every GPU, the links to other GPUs and to the host, and the host's memory.
ANY_CARD = Speeds(half_flops_per_s=250e12, single_flops_per_s=25e12, memory_bytes_per_s=1e12)
INTERCONNECT_BYTES_PER_S = 20e9
HOST_LINK_BYTES_PER_S = 12e9
HOST_MEMORY_BYTES_PER_S = 40e9
# Bytes per parameter: Adam reads weight, gradient and two moments in fp32, and writes all but the gradient.
UPDATE_BYTES = 28
# Kernels per layer, forward and backward together, and the time to launch one.
LAUNCHES_A_LAYER = 45
LAUNCH_S = 6e-6


@dataclass(frozen=True)
class Cost:
    """Estimated seconds of one optimizer step on one rank, by cause; no overlap is assumed."""

    compute_s: float
    recompute_s: float
    launch_s: float
    communication_s: float
    offload_s: float
    update_s: float

    @property
    def total_s(self) -> float:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        return {
            "arithmetic": self.compute_s,
            "recomputation": self.recompute_s,
            "kernel launches": self.launch_s,
            "communication": self.communication_s,
            "offload": self.offload_s,
            "optimizer": self.update_s,
        }


def assumptions(speeds: Speeds | None, name: str | None) -> str:
    """What the estimate assumes, in one line."""
    card = f"{name} by its data sheet" if speeds is not None else "a card of which nothing is known"
    known = speeds or ANY_CARD
    return (
        f"cost: {card}, {known.half_flops_per_s / 1e12:g} TFLOP/s in 16-bit and {known.single_flops_per_s / 1e12:g} in "
        f"fp32, of which {HALF_SHARE:.0%} and {SINGLE_SHARE:.0%} are reached; "
        f"{INTERCONNECT_BYTES_PER_S / 1e9:g} GB/s between GPUs, {HOST_LINK_BYTES_PER_S / 1e9:g} to the host, "
        f"{HOST_MEMORY_BYTES_PER_S / 1e9:g} in it, nothing overlapped: only ratios mean something"
    )


def estimate(
    settings: Settings,
    *,
    num_parameters: int,
    num_layers: int,
    sequence_length: int,
    world_size: int,
    speeds: Speeds | None = None,
) -> Cost:
    """The cost of one optimizer step on one rank."""
    card = speeds or ANY_CARD
    is_half = settings.dtype != "fp32" or settings.autocast is not None
    rate = card.half_flops_per_s * HALF_SHARE if is_half else card.single_flops_per_s * SINGLE_SHARE
    tokens = settings.micro_batch * settings.accumulation * sequence_length
    forward_s = 2 * num_parameters * tokens / rate
    launches = num_layers * LAUNCHES_A_LAYER * (4 / 3 if settings.checkpointing else 1) * settings.accumulation
    share = num_parameters / (world_size if settings.stage else 1)
    is_on_device = settings.offload_optimizer == "none"
    update_bytes = UPDATE_BYTES * settings.master_bytes / 4 * share
    return Cost(
        compute_s=3 * forward_s,
        recompute_s=forward_s if settings.checkpointing else 0.0,
        launch_s=launches * LAUNCH_S,
        communication_s=sent_bytes(settings, num_parameters, world_size) / INTERCONNECT_BYTES_PER_S,
        offload_s=_offload_s(settings, share),
        update_s=update_bytes / (card.memory_bytes_per_s * MEMORY_SHARE) if is_on_device else 0.0,
    )


def sent_bytes(settings: Settings, num_parameters: int, world_size: int) -> float:
    """Bytes that one rank sends in one optimizer step.

    Stages 0 to 2 reduce gradients by all-reduce; at stages 1 and 2 that is use_multi_rank_bucket_allreduce, which is on
    by default. Stages 1 and 2 gather the weights once per step, stage 3 twice per micro batch.
    """
    ring = num_parameters * (world_size - 1) / world_size
    weights, gradients = ring * settings.weight_bytes, ring * settings.comm_bytes
    if settings.stage == 0:
        return 2 * gradients
    if settings.stage == 1:
        # With fp32 gradient sums it is the sums that are reduced.
        return 2 * ring * max(settings.comm_bytes, settings.accum_bytes) + weights
    if settings.stage == 2:
        return 2 * gradients * settings.accumulation + weights
    return (gradients + 2 * weights) * settings.accumulation


def _offload_s(settings: Settings, share: float) -> float:
    """Seconds to move offloaded states. `share`: the number of elements in this rank's partition."""
    seconds = 0.0
    if settings.offload_optimizer != "none":
        # From stage 2 on gradient sums are on the host: each further micro batch reads them and writes them back.
        transfers = 2 * settings.accumulation - 1 if settings.stage >= 2 else 1
        moved = settings.accum_bytes * transfers + settings.weight_bytes
        seconds += share * (moved / HOST_LINK_BYTES_PER_S + UPDATE_BYTES / HOST_MEMORY_BYTES_PER_S)
    if settings.offload_param != "none":
        seconds += 2 * settings.weight_bytes * share * settings.accumulation / HOST_LINK_BYTES_PER_S
    return seconds
