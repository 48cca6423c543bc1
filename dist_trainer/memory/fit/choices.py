"""The settings that the search tries, each as a complete DeepSpeed JSON."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dist_trainer.config.deepspeed.rules import block, contradictions
from dist_trainer.config.optimisations import use_torch_adam
from dist_trainer.config.request import Switches
from dist_trainer.errors import UserError

Offload = Literal["none", "optimizer", "all"]
Precision = Literal["fp32", "bf16", "fp16", "bf16 states"]

LARGEST_MICRO_BATCH = 256
BUCKET_ELEMENTS = 20_000_000
# At most so many gradients are summed in 16-bit: the last summand then keeps at least 5 significant bits, of bf16's 8
# and fp16's 11. DeepSpeed itself warns of more in bf16 (runtime/engine.py, _do_optimizer_sanity_check).
MOST_SUMMED = {"bf16": 8, "fp16": 64}
NEUTRAL, COARSE_SUMS, COARSE_WEIGHTS = range(3)

_OFFLOADS: dict[Offload, str] = {
    "none": "no offload",
    "optimizer": "optimizer offload",
    "all": "optimizer and parameter offload",
}
_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "bf16 states")
_ADAM = ("adam", "adamw")
# Optimizers that DeepSpeed can run on the host.
_ON_HOST = (*_ADAM, "lion", "adagrad")


@dataclass(frozen=True)
class Choice:
    """One setting, without its accumulation. `offload`: 'optimizer', or 'all' for parameters too. Precision 'bf16
    states': master weights and optimizer states are bf16 as well. `sums_in_fp32`: gradients of micro batches are summed
    in fp32.
    """

    stage: int
    offload: Offload
    precision: Precision
    sums_in_fp32: bool
    checkpointing: bool
    micro_batch: int

    def __str__(self) -> str:
        precision = f"{self.precision} with fp32 gradient sums" if self.sums_in_fp32 else self.precision
        parts = [f"ZeRO-{self.stage}", precision, f"micro batch {self.micro_batch}"]
        parts.append("checkpointing" if self.checkpointing else "no checkpointing")
        if self.offload != "none":
            parts.append(_OFFLOADS[self.offload])
        return ", ".join(parts)

    def risk(self, accumulation: int) -> int:
        """How much the setting may affect what is learned: NEUTRAL, COARSE_SUMS or COARSE_WEIGHTS, in rising order."""
        if self.precision == "bf16 states":
            return COARSE_WEIGHTS
        most = MOST_SUMMED.get(self.precision)
        if most is not None and not self.sums_in_fp32 and accumulation > most:
            return COARSE_SUMS
        return NEUTRAL


def micro_batches(global_batch: int, world_size: int, wanted: int | None = None) -> tuple[int, ...]:
    """The micro batches that divide a rank's share of the global batch, smallest first; or only the wanted one.

    Raises UserError if the ranks, or the ranks and the wanted micro batch, do not divide the global batch.
    """
    unit = world_size * (wanted or 1)
    if global_batch % unit:
        raise UserError(
            "the ranks do not divide the global batch" + (" into micro batches" if wanted else ""),
            where="--global-batch",
            found=global_batch,
            expected=f"a multiple of {unit}",
            hint=f"say --global-batch {-(-global_batch // unit) * unit}",
        )
    if wanted:
        return (wanted,)
    share = global_batch // world_size
    return tuple(size for size in range(1, min(share, LARGEST_MICRO_BATCH) + 1) if share % size == 0)


def choices(base: Mapping[str, Any], half: Literal["bf16", "fp16"], switches: Switches) -> Iterator[Choice]:
    """Every choice that DeepSpeed accepts, at micro batch 1; `switches` fix what the user has set."""
    kind = str(block(base, "optimizer").get("type", "")).lower()
    precisions: list[tuple[Precision, bool]] = [("fp32", False), (half, False), (half, True)]
    if half == "bf16":
        precisions.append(("bf16 states", False))
    offloads: tuple[Offload, ...] = tuple(_OFFLOADS) if kind in _ON_HOST else ("none",)
    for stage, offload, (precision, sums_in_fp32), checkpointing in itertools.product(
        range(4), offloads, precisions, (False, True)
    ):
        choice = Choice(stage, offload, precision, sums_in_fp32, checkpointing, micro_batch=1)
        if _is_sensible(choice) and _is_allowed(choice, switches):
            config = configure(base, choice, accumulation=1, world_size=1)
            if not contradictions(config):
                yield choice


def _is_sensible(choice: Choice) -> bool:
    """Parameter offload requires stage 3; optimizer offload, 16-bit states and fp32 gradient sums require stage 1.

    16-bit states are not combined with offload.
    """
    if choice.offload == "all":
        needed_stage = 3
    else:
        needed_stage = 1 if choice.offload == "optimizer" or choice.precision == "bf16 states" else 0
    if choice.precision == "bf16 states" and choice.offload != "none":
        return False
    return choice.stage >= max(needed_stage, 1 if choice.sums_in_fp32 else 0)


def _is_allowed(choice: Choice, switches: Switches) -> bool:
    precision = "bf16" if choice.precision == "bf16 states" else choice.precision
    return switches.precision in (None, precision) and switches.checkpointing in (None, choice.checkpointing)


def neighbours(choice: Choice, found: Collection[Choice], sizes: Sequence[int]) -> list[tuple[str, Choice]]:
    """The choices one step away, each with what is different. `found`: all valid choices, at micro batch 1."""
    place = sizes.index(choice.micro_batch)
    steps = [
        (f"micro batch {size}", replace(choice, micro_batch=size))
        for size in (*sizes[max(0, place - 1) : place], *sizes[place + 1 : place + 2])
    ]
    checkpointing = "no checkpointing" if choice.checkpointing else "checkpointing"
    steps.append((checkpointing, replace(choice, checkpointing=not choice.checkpointing)))
    steps += [(f"ZeRO-{stage}", replace(choice, stage=stage)) for stage in (choice.stage - 1, choice.stage + 1)]
    steps += [(label, replace(choice, offload=offload)) for offload, label in _OFFLOADS.items()]
    sums = "16-bit gradient sums" if choice.sums_in_fp32 else "fp32 gradient sums"
    steps.append((sums, replace(choice, sums_in_fp32=not choice.sums_in_fp32)))
    steps += [(name, replace(choice, precision=name, sums_in_fp32=False)) for name in _PRECISIONS]
    told: dict[Choice, str] = {}
    for label, step in steps:
        # Where the step does not exist with the same gradient sums, it is tried with the others: not every stage and
        # precision has fp32 sums.
        for other in (step, replace(step, sums_in_fp32=not step.sums_in_fp32)):
            if replace(other, micro_batch=1) in found:
                told.setdefault(other, label)
                break
    told.pop(choice, None)
    return [(label, other) for other, label in told.items()]


def configure(base: Mapping[str, Any], choice: Choice, accumulation: int, world_size: int) -> dict[str, Any]:
    """A complete DeepSpeed JSON of the choice. Optimizer, schedule, clipping and everything else that the search does
    not choose are those of `base`, which has to be resolved.
    """
    config = copy.deepcopy(dict(base))
    config["train_batch_size"] = choice.micro_batch * accumulation * world_size
    config["train_micro_batch_size_per_gpu"] = choice.micro_batch
    config["gradient_accumulation_steps"] = accumulation
    for name in (
        *("fp16", "bf16", "data_types", "torch_autocast", "communication_data_type"),
        *("activation_checkpointing", "zero_optimization"),
    ):
        config.pop(name, None)
    config |= _precision(choice)
    if choice.checkpointing:
        config["activation_checkpointing"] = {}
    config["zero_optimization"] = _zero_block(choice)
    _set_optimizer(config, choice)
    return config


def _precision(choice: Choice) -> dict[str, Any]:
    blocks: dict[str, Any] = {"bf16": {"enabled": choice.precision in ("bf16", "bf16 states")}}
    if choice.precision == "fp16":
        blocks["fp16"] = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": 16,
            "loss_scale_window": 1000,
            "hysteresis": 2,
            "min_loss_scale": 1,
        }
    if choice.precision == "bf16 states":
        blocks["bf16"] |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    if choice.sums_in_fp32:
        blocks["data_types"] = {"grad_accum_dtype": "fp32"}
    return blocks


def _zero_block(choice: Choice) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": choice.stage}
    if choice.stage:
        zero |= {"reduce_bucket_size": BUCKET_ELEMENTS, "overlap_comm": False, "contiguous_gradients": True}
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


def _set_optimizer(config: dict[str, Any], choice: Choice) -> None:
    """Adam becomes DeepSpeed's own on the host with offload, else torch's fused one; other optimizers are kept."""
    kind = str(block(config, "optimizer").get("type", "")).lower()
    if kind not in _ADAM:
        return
    params = config["optimizer"].setdefault("params", {})
    if choice.offload == "none":
        use_torch_adam(params, fused=True)
        return
    for name in ("torch_adam", "fused", "foreach", "set_grad_none"):
        params.pop(name, None)
