"""The rows of `optimizer.params` and `scheduler.params`, by the block's `type`.

Sources: deepspeed/runtime/engine.py `_configure_basic_optimizer` and the optimizers' constructors,
deepspeed/runtime/lr_schedules.py, torch.optim and torch.optim.lr_scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from dist_trainer.config.deepspeed.keys import Auto, Facts, Key, Rows
from dist_trainer.config.deepspeed.rates import highest, overriding_rate
from dist_trainer.config.deepspeed.types import (
    BOOL,
    TEXT,
    Type,
    choice,
    either,
    integer,
    list_of,
    number,
    or_null,
)

# What DeepSpeed builds itself, named in any case; anything else is a class of torch.optim, named exactly.
DEEPSPEED_OPTIMIZERS = ("adagrad", "adam", "adamw", "lamb", "muadam", "muadamw", "musgd", "lion", "muon")
TORCH_OPTIMIZERS = (
    *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon", "NAdam", "RAdam"),
    *("RMSprop", "Rprop", "SGD", "SparseAdam"),
)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What their constructors take, in torch 2.13.
TORCH_TAKES: Mapping[str, frozenset[str]] = {
    "ASGD": _names("lr lambd alpha t0 weight_decay foreach maximize differentiable capturable"),
    "Adadelta": _names("lr rho eps weight_decay foreach capturable maximize differentiable"),
    "Adafactor": _names("lr beta2_decay eps d weight_decay foreach maximize"),
    "Adagrad": _names("lr lr_decay weight_decay initial_accumulator_value eps foreach maximize differentiable fused"),
    "Adam": _names(
        "lr betas eps weight_decay amsgrad foreach maximize capturable differentiable fused decoupled_weight_decay"
    ),
    "AdamW": _names("lr betas eps weight_decay amsgrad maximize foreach capturable differentiable fused"),
    "Adamax": _names("lr betas eps weight_decay foreach maximize differentiable capturable"),
    "LBFGS": _names("lr max_iter max_eval tolerance_grad tolerance_change history_size line_search_fn"),
    "Muon": _names("lr weight_decay momentum nesterov ns_coefficients eps ns_steps adjust_lr_fn"),
    "NAdam": _names(
        "lr betas eps weight_decay momentum_decay decoupled_weight_decay foreach maximize capturable differentiable"
    ),
    "RAdam": _names("lr betas eps weight_decay decoupled_weight_decay foreach maximize capturable differentiable"),
    "RMSprop": _names("lr alpha eps weight_decay momentum centered capturable foreach maximize differentiable"),
    "Rprop": _names("lr etas step_sizes capturable foreach maximize differentiable"),
    "SGD": _names("lr momentum dampening weight_decay nesterov maximize foreach differentiable fused"),
    "SparseAdam": _names("lr betas eps maximize"),
}
REMOVED_OPTIMIZERS = ("onebitadam", "onebitlamb", "zerooneadam", "fusedadam", "fusedlamb", "fusedlion", "cpuadam")
ZERO_TESTED_OPTIMIZERS = ("adam", "adamw", "adagrad", "lion", "muon")
# They have neither momentum nor betas, which torch's cyclic schedules move by default.
OPTIMIZERS_WITHOUT_MOMENTUM = ("adagrad", "adadelta", "adafactor", "asgd", "lbfgs", "muon", "rprop")
# The rates of Muon's two halves; its `lr` is for the half that has none of its own.
MUON_RATES = ("muon_lr", "adam_lr")
DEEPSPEED_SCHEDULERS = ("LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR")

# Names that only torch's Adam takes, and names that only DeepSpeed's takes: they decide who builds it.
TORCH_ADAM_ONLY = ("fused", "foreach", "maximize", "capturable", "differentiable")
DEEPSPEED_ADAM_ONLY = ("bias_correction", "set_grad_none")

DEFAULT_OPTIMIZER: Mapping[str, Any] = {
    "type": "AdamW",
    "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
}


@dataclass(frozen=True)
class Params:
    """The known rows of a `params` block, the ones it cannot do without, and whether other names may stand there."""

    rows: Rows
    required: tuple[str, ...] = ()
    open_ended: bool = False


def is_adam(config: Mapping[str, Any]) -> bool:
    """Whether DeepSpeed reads the optimizer as Adam or AdamW, for which it chooses the implementation."""
    return str((config.get("optimizer") or {}).get("type", "")).lower() in ("adam", "adamw")


def learning_rate(facts: Facts, config: Mapping[str, Any]) -> Any:
    """The optimizer's rate where the file says one, else the scheduler's own, else the default."""
    rate = ((config.get("optimizer") or {}).get("params") or {}).get("lr", "auto")
    if rate != "auto":
        return rate
    overriding = overriding_rate(config)
    return facts.learning_rate if overriding is None else highest(overriding[1])


def _keys(rows: Mapping[str, Type | Key]) -> Rows:
    return {name: row if isinstance(row, Key) else Key(row) for name, row in rows.items()}


_RATE = either(number(0), list_of(number(0)))
_COUNT = integer(1)
# Not started: when a run is resumed, this program advances the schedule itself (train/schedule.py).
_UNSTARTED = integer(-1, -1)


def _common() -> dict[str, Type | Key]:
    betas = list_of(number(0, 1), 2)
    return {
        "lr": Key(number(0), Auto("the rate that the scheduler says, else 3e-4", learning_rate)),
        "betas": Key(betas, Auto("the default", lambda facts, config: list(facts.betas))),
        "eps": Key(number(0), Auto("the default", lambda facts, config: facts.eps)),
        "weight_decay": Key(number(0), Auto("the default", lambda facts, config: facts.weight_decay)),
        "max_grad_norm": Key(
            number(),
            refused="DeepSpeed refuses this as an optimizer parameter",
            instead='write "gradient_clipping" at the top level',
        ),
    }


@cache
def _optimizers() -> Mapping[str, Params]:
    common = _common()
    no_eps = {name: row for name, row in common.items() if name != "eps"}
    no_betas = {name: row for name, row in common.items() if name != "betas"}
    adam = {
        **common,
        **dict.fromkeys(("torch_adam", "adam_w_mode", "amsgrad", *DEEPSPEED_ADAM_ONLY), BOOL),
        **dict.fromkeys(("fused", "foreach"), or_null(BOOL)),
        **dict.fromkeys(("maximize", "capturable", "differentiable"), BOOL),
        "fp32_optimizer_states": or_null(BOOL),
    }
    return {
        "adam": Params(_keys(adam)),
        "adamw": Params(_keys(adam)),
        "lamb": Params(
            _keys(
                {
                    **common,
                    **dict.fromkeys(("bias_correction", "eps_inside_sqrt", "amsgrad"), BOOL),
                    "max_coeff": number(0),
                    "min_coeff": number(0),
                }
            )
        ),
        "lion": Params(_keys({**no_eps, "set_grad_none": BOOL, "fp32_optimizer_states": BOOL})),
        "adagrad": Params(
            _keys(
                {
                    **no_betas,
                    **dict.fromkeys(("maximize", "differentiable", "amsgrad", "fp32_optimizer_states"), BOOL),
                    **dict.fromkeys(("fused", "foreach"), or_null(BOOL)),
                    "lr_decay": number(0),
                    "initial_accumulator_value": number(0),
                }
            )
        ),
        "muon": Params(
            _keys(
                {
                    **common,
                    "momentum": number(0, 1),
                    "ns_method": TEXT,
                    "muon_lr": number(0),
                    "adam_lr": number(0),
                    **dict.fromkeys(("torch_adam", "adam_w_mode", "fp32_optimizer_states"), BOOL),
                    "foreach": or_null(BOOL),
                }
            )
        ),
    }


@cache
def _open_optimizer() -> Params:
    return Params(_keys(_common()), open_ended=True)


def optimizer_params(kind: str) -> Params:
    """The rows for an optimizer's `type`; torch's and mup's optimizers take whatever their constructors take."""
    return _optimizers().get(kind.lower(), _open_optimizer())


def _half(facts: Facts) -> int:
    return max(1, facts.total_steps // 2)


def _all_steps(facts: Facts, config: Mapping[str, Any]) -> int:
    return facts.total_steps


@cache
def scheduler_table() -> Mapping[str, Params]:
    """DeepSpeed's five schedulers, and those of torch's whose parameters JSON can say."""
    peak = Auto("optimizer.params.lr", learning_rate)
    total = Key(_COUNT, Auto("the optimizer steps of all phases", _all_steps))
    last = {"last_batch_iteration": _UNSTARTED}
    warmup: dict[str, Type | Key] = {
        "warmup_num_steps": Key(
            _COUNT, Auto("a hundredth of all steps, at least 1", lambda facts, config: facts.warmup_num_steps)
        ),
        "warmup_type": choice("log", "linear"),
        **last,
    }
    rates: dict[str, Type | Key] = {
        "warmup_min_lr": Key(_RATE, Auto("the default", lambda facts, config: 0)),
        "warmup_max_lr": Key(or_null(_RATE), peak),
    }
    stairs = integer(0)
    momentum = number(0, 1)
    gamma = number(0)
    # A factor on the rate. 0 is excluded because torch divides by it.
    factor = number(0, 1, open_low=True)
    torch_last = {"last_epoch": _UNSTARTED}
    torch_momentum: dict[str, Type | Key] = {"cycle_momentum": BOOL, "base_momentum": _RATE, "max_momentum": _RATE}
    cycle: dict[str, Type | Key] = {
        "cycle_min_lr": Key(_RATE, Auto("a 25th of optimizer.params.lr", lambda f, c: learning_rate(f, c) / 25)),
        "cycle_max_lr": Key(_RATE, peak),
        "cycle_first_step_size": Key(_COUNT, Auto("half of all steps", lambda facts, config: _half(facts))),
        "cycle_second_step_size": Key(
            or_null(integer(0)),
            Auto("the other half of all steps", lambda facts, config: max(1, facts.total_steps - _half(facts))),
        ),
        "cycle_first_stair_count": stairs,
        "cycle_second_stair_count": or_null(stairs),
        "decay_step_size": integer(0),
        "decay_lr_rate": number(),
        "cycle_momentum": BOOL,
        "cycle_min_mom": momentum,
        "cycle_max_mom": momentum,
        "decay_mom_rate": number(),
        **last,
    }
    return {
        "LRRangeTest": Params(
            _keys(
                {
                    "lr_range_test_min_lr": _RATE,
                    "lr_range_test_step_size": _COUNT,
                    "lr_range_test_step_rate": number(),
                    "lr_range_test_staircase": BOOL,
                    **last,
                }
            )
        ),
        "OneCycle": Params(_keys(cycle), required=("cycle_min_lr", "cycle_max_lr")),
        "WarmupLR": Params(_keys({**rates, **warmup})),
        "WarmupDecayLR": Params(_keys({**rates, **warmup, "total_num_steps": total}), required=("total_num_steps",)),
        "WarmupCosineLR": Params(
            _keys(
                {
                    **warmup,
                    "total_num_steps": total,
                    "warmup_min_ratio": number(0),
                    "cos_min_ratio": number(0),
                }
            ),
            required=("total_num_steps",),
        ),
        "StepLR": Params(_keys({"step_size": _COUNT, "gamma": gamma, **torch_last}), required=("step_size",)),
        "MultiStepLR": Params(
            _keys({"milestones": list_of(integer(0)), "gamma": gamma, **torch_last}), required=("milestones",)
        ),
        "ConstantLR": Params(_keys({"factor": factor, "total_iters": total, **torch_last})),
        "LinearLR": Params(
            _keys({"start_factor": factor, "end_factor": number(0, 1), "total_iters": total, **torch_last})
        ),
        "ExponentialLR": Params(_keys({"gamma": gamma, **torch_last}), required=("gamma",)),
        "CosineAnnealingLR": Params(_keys({"T_max": total, "eta_min": number(0), **torch_last}), required=("T_max",)),
        "CyclicLR": Params(
            _keys(
                {
                    "base_lr": _RATE,
                    "max_lr": Key(_RATE, peak),
                    "step_size_up": _COUNT,
                    "step_size_down": or_null(_COUNT),
                    "mode": choice("triangular", "triangular2", "exp_range"),
                    "gamma": gamma,
                    "scale_mode": choice("cycle", "iterations"),
                    **torch_momentum,
                    **torch_last,
                }
            ),
            required=("base_lr", "max_lr"),
        ),
        "CosineAnnealingWarmRestarts": Params(
            _keys({"T_0": _COUNT, "T_mult": _COUNT, "eta_min": number(0), **torch_last}), required=("T_0",)
        ),
        "OneCycleLR": Params(
            _keys(
                {
                    "max_lr": Key(_RATE, peak),
                    "total_steps": Key(or_null(_COUNT), total.auto),
                    "epochs": or_null(_COUNT),
                    "steps_per_epoch": or_null(_COUNT),
                    "pct_start": number(0, 1, open_ends=True),
                    "anneal_strategy": choice("cos", "linear"),
                    "div_factor": number(0, open_ends=True),
                    "final_div_factor": number(0, open_ends=True),
                    "three_phase": BOOL,
                    **torch_momentum,
                    **torch_last,
                }
            ),
            required=("max_lr",),
        ),
        "PolynomialLR": Params(_keys({"total_iters": total, "power": number(0), **torch_last})),
    }


def scheduler_params(kind: str) -> Params:
    """The rows for a scheduler's `type`; any names for an unknown type, which is a mistake in itself."""
    return scheduler_table().get(kind, Params({}, open_ended=True))
