"""The learning rate: which key holds it if the optimizer's `lr` does not, and at which rate a schedule starts.

Most schedules multiply the optimizer's rate; some write one of their own over it, whatever the optimizer says.
Sources: deepspeed/runtime/lr_schedules.py and torch.optim.lr_scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class OwnRate:
    """Keys among a scheduler's params. `peak`: the rate that counts in place of the optimizer's; `lowest`: the rate
    from which the schedule rises. `unsaid`: what DeepSpeed takes without the key `peak` (None: the optimizer's rate).
    """

    peak: str
    lowest: str | None = None
    unsaid: float | None = None


OWN_RATES: Mapping[str, OwnRate] = {
    "LRRangeTest": OwnRate("lr_range_test_min_lr", unsaid=1e-3),
    "OneCycle": OwnRate("cycle_max_lr", "cycle_min_lr"),
    "WarmupLR": OwnRate("warmup_max_lr", "warmup_min_lr"),
    "WarmupDecayLR": OwnRate("warmup_max_lr", "warmup_min_lr", unsaid=1e-3),
    "CyclicLR": OwnRate("max_lr", "base_lr"),
    "OneCycleLR": OwnRate("max_lr"),
}


def is_rate(value: Any) -> bool:
    """Whether it is a number, or a list of one for each group of parameters: not "auto", null or an empty list."""
    if isinstance(value, list):
        return bool(value) and all(map(is_rate, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def highest(rate: Any) -> float:
    return float(max(rate) if isinstance(rate, list) else rate)


def params_of(config: Config, name: str) -> Mapping[str, Any]:
    """`optimizer.params` or `scheduler.params`, empty where there are none."""
    block = config.get(name)
    params = block.get("params") if isinstance(block, Mapping) else None
    return params if isinstance(params, Mapping) else {}


def scheduler_type(config: Config) -> str | None:
    block = config.get("scheduler")
    kind = block.get("type") if isinstance(block, Mapping) else None
    return kind if isinstance(kind, str) else None


def own_rate(config: Config) -> OwnRate | None:
    """The names of the scheduler's own rates, if it is one that has some."""
    return OWN_RATES.get(scheduler_type(config) or "")


def overriding_rate(config: Config) -> tuple[str, Any] | None:
    """The key of the scheduler whose rate counts in place of the optimizer's, and that rate; None where the
    optimizer's own counts."""
    own = own_rate(config)
    if own is None:
        return None
    # An explicit null means the optimizer's rate.
    rate = params_of(config, "scheduler").get(own.peak, own.unsaid)
    return (f"scheduler.params.{own.peak}", rate) if is_rate(rate) else None


def peak_rate(config: Config) -> float | None:
    """The rate of a resolved configuration, as the optimizer or its schedule says it; None where neither does."""
    overriding = overriding_rate(config)
    rate = params_of(config, "optimizer").get("lr") if overriding is None else overriding[1]
    return highest(rate) if is_rate(rate) else None


@dataclass(frozen=True)
class IdleStart:
    """`num_updates` at the start of a run have rate 0, because `key` is 0 (or means 0 where it is not said)."""

    num_updates: int
    key: str


# The key of the lowest rate, its default (None: the key is required), and how many updates have that rate. DeepSpeed's
# warm-ups give it to two: the update before the schedule's first step, and the one after.
_STARTS: Mapping[str, tuple[str, float | None, int]] = {
    "WarmupLR": ("warmup_min_lr", 0.0, 2),
    "WarmupDecayLR": ("warmup_min_lr", 0.0, 2),
    "WarmupCosineLR": ("warmup_min_ratio", 0.0, 2),
    "OneCycle": ("cycle_min_lr", None, 1),
    "CyclicLR": ("base_lr", None, 1),
}


def idle_start(config: Config) -> IdleStart | None:
    """The updates at rate 0 with which the schedule of a resolved configuration begins; None if there are none."""
    start = _STARTS.get(scheduler_type(config) or "")
    if start is None:
        return None
    name, unsaid, num_updates = start
    lowest = params_of(config, "scheduler").get(name, unsaid)
    is_idle = is_rate(lowest) and highest(lowest) == 0
    return IdleStart(num_updates, f"scheduler.params.{name}") if is_idle else None
