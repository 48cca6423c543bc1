"""What a setting costs in time, estimated: enough to rank settings that fit, not to promise seconds.

One reference machine is assumed for all (the constants below), so that costs compare; only their ratios are said.
Sources: 6N FLOPs a token for forward and backward and 2N for one forward (Kaplan et al. 2020, section 2.1); ring
all-reduce moves 2(W-1)/W of the data, reduce-scatter and all-gather half of it each (Rajbhandari et al. 2020, ZeRO,
section 7); DeepSpeed's stage 2 reduces at every micro batch, stage 3 also gathers twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from dist_trainer.memory.settings import Settings

HALF_FLOPS_PER_S = 100e12
SINGLE_FLOPS_PER_S = 15e12
INTERCONNECT_BYTES_PER_S = 20e9
HOST_LINK_BYTES_PER_S = 12e9
HOST_MEMORY_BYTES_PER_S = 40e9
# Kernels a layer, forward and backward, and the time to launch one.
LAUNCHES_A_LAYER = 45
LAUNCH_S = 6e-6

ASSUMED = (
    "cost: 100 TFLOP/s in 16-bit and 15 in fp32, 20 GB/s between GPUs, 12 GB/s between host and GPU, 40 GB/s of host "
    "memory; only ratios mean something"
)


@dataclass(frozen=True)
class Cost:
    """Estimated seconds of one optimizer step on the reference machine, by what they go to."""

    compute_s: float
    recompute_s: float
    launch_s: float
    communication_s: float
    offload_s: float

    @property
    def total_s(self) -> float:
        return self.compute_s + self.recompute_s + self.launch_s + self.communication_s + self.offload_s


def estimate(
    settings: Settings, *, num_parameters: int, num_layers: int, sequence_length: int, world_size: int
) -> Cost:
    """The cost of one optimizer step on one rank."""
    rate = HALF_FLOPS_PER_S if settings.dtype != "fp32" or settings.autocast else SINGLE_FLOPS_PER_S
    tokens = settings.micro_batch * settings.accumulation * sequence_length
    passes = settings.accumulation
    forward_s = 2 * num_parameters * tokens / rate
    launches = num_layers * LAUNCHES_A_LAYER * (4 / 3 if settings.checkpointing else 1)
    weights = settings.weight_bytes * num_parameters
    return Cost(
        compute_s=3 * forward_s,
        recompute_s=forward_s if settings.checkpointing else 0.0,
        launch_s=launches * LAUNCH_S * passes,
        communication_s=_communicated(settings.stage, weights, passes, world_size) / INTERCONNECT_BYTES_PER_S,
        offload_s=_offload_s(settings, num_parameters, world_size),
    )


def _communicated(stage: int, weights_bytes: int, passes: int, world_size: int) -> float:
    """Bytes one rank sends in one optimizer step."""
    once = weights_bytes * (world_size - 1) / world_size
    if stage <= 1:
        return 2 * once
    if stage == 2:
        # DeepSpeed reduces a bucket with an all-reduce (use_multi_rank_bucket_allreduce), twice the volume.
        return once * (2 * passes + 1)
    return once * 3 * passes


def _offload_s(settings: Settings, num_parameters: int, world_size: int) -> float:
    share = num_parameters / world_size
    seconds = 0.0
    if settings.offload_optimizer != "none":
        moved = settings.weight_bytes * share * (settings.accumulation + 1)
        # Adam on the host reads and writes weights, gradients and two states in fp32.
        seconds += moved / HOST_LINK_BYTES_PER_S + 28 * share / HOST_MEMORY_BYTES_PER_S
    if settings.offload_param != "none":
        seconds += 2 * settings.weight_bytes * share * settings.accumulation / HOST_LINK_BYTES_PER_S
    return seconds
