"""Combinations with which DeepSpeed's engine fails when it is built, or at its first step: a row each, with the place
in DeepSpeed that shows it.

rules.py has what DeepSpeed takes and this program does not, and what a key's own type cannot tell. Rows for one device
alone stand in adapt.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dist_trainer.config.deepspeed import params
from dist_trainer.config.deepspeed.mistakes import Mistake
from dist_trainer.config.deepspeed.rules import (
    block,
    dtype_family,
    gradient_clipping,
    is_bf16_optimizer,
    offload_device,
    zero_stage,
)

Config = Mapping[str, Any]


@dataclass(frozen=True)
class EngineRule:
    """Where `when` holds, DeepSpeed 0.19.8 refuses the configuration for `key`. `source` is a file of DeepSpeed's and a
    piece of its text that shows it."""

    key: str
    when: Callable[[Config], bool]
    problem: str
    hint: str
    source: tuple[str, str]


def _zero(config: Config) -> Mapping[str, Any]:
    return block(config, "zero_optimization")


def is_offloaded(config: Config) -> bool:
    return offload_device(config, "optimizer") != "none"


def _is_any_adam(config: Config) -> bool:
    return params.is_adam(config) or config.get("optimizer") is None


def runs_cpu_adam(config: Config) -> bool:
    """Whether DeepSpeed builds its DeepSpeedCPUAdam for this."""
    given = block(block(config, "optimizer"), "params")
    return _is_any_adam(config) and is_offloaded(config) and not given.get("torch_adam")


def _has_16bit_masters(config: Config, kind: str) -> bool:
    return bool(block(config, kind).get(f"{kind}_master_weights_and_grads"))


def _needs_cpu_adam_for_bf16(config: Config) -> bool:
    states = bool(block(config, "bf16").get("bf16_optimizer_states"))
    wanted = _has_16bit_masters(config, "bf16") and (not states or is_offloaded(config))
    return wanted and zero_stage(config) > 0 and not is_bf16_optimizer(config) and not runs_cpu_adam(config)


def _averages_in_scattered_buckets(config: Config) -> bool:
    """Whether ZeRO 2 or 3 averages gradients by reduce-scatter, so that each rank gets the part that it needs."""
    averages = str(config.get("gradient_allreduce_op", "mean")).lower() == "mean"
    return zero_stage(config) >= 2 and averages and _zero(config).get("reduce_scatter", True) is not False


def _skips_the_norm(config: Config) -> bool:
    return zero_stage(config) in (1, 2) and _zero(config).get("compute_grad_norm") is False


def _zenflow(config: Config) -> Mapping[str, Any] | None:
    zenflow = _zero(config).get("zenflow")
    return zenflow if isinstance(zenflow, Mapping) else None


def _zenflow_is(check: Callable[[Config, Mapping[str, Any]], bool]) -> Callable[[Config], bool]:
    def holds(config: Config) -> bool:
        zenflow = _zenflow(config)
        return zenflow is not None and check(config, zenflow)

    return holds


def _strategy(zenflow: Mapping[str, Any]) -> str:
    return str(zenflow.get("select_strategy", "auto"))


def _selects_too_often(config: Config, zenflow: Mapping[str, Any]) -> bool:
    select, update = zenflow.get("select_interval", "auto"), zenflow.get("update_interval", "auto")
    if not isinstance(update, int):
        return False
    if _strategy(zenflow) == "step":
        return isinstance(select, int) and select < update
    every = select if isinstance(select, int) else 1
    return 0 < every * (zenflow.get("steps_per_epoch") or 0) < update


def _has_no_overlap(config: Config, zenflow: Mapping[str, Any]) -> bool:
    said = _zero(config).get("overlap_comm")
    overlaps = zero_stage(config) == 3 if said is None else bool(said)
    return bool(zenflow.get("offload")) and not overlaps


_STAGE12 = "runtime/zero/stage_1_and_2.py"
_STAGE3 = "runtime/zero/stage3.py"
_BASE = "runtime/base_optimizer.py"
_ZENFLOW = "runtime/zenflow/zenflow_stage_1_and_2.py"

ENGINE_RULES: tuple[EngineRule, ...] = (
    EngineRule(
        "fp16.fp16_master_weights_and_grads",
        lambda config: (
            _has_16bit_masters(config, "fp16")
            and zero_stage(config) > 0
            and not is_bf16_optimizer(config)
            and not runs_cpu_adam(config)
        ),
        "needs DeepSpeed's CPU Adam: optimizer offload, and Adam or AdamW without torch_adam",
        'add "offload_optimizer": {"device": "cpu"}, or remove it',
        (_BASE, "fp16_offload_validator()"),
    ),
    EngineRule(
        "bf16.bf16_master_weights_and_grads",
        _needs_cpu_adam_for_bf16,
        "16-bit master weights need 16-bit optimizer states without offload, or DeepSpeed's CPU Adam with it "
        "(Adam or AdamW without torch_adam)",
        'add "bf16_optimizer_states": true, or remove it',
        (_BASE, "and (not self.bf16_optimizer_states or offload_enabled)):"),
    ),
    EngineRule(
        "fp16.fp16_master_weights_and_grads",
        lambda config: (
            _has_16bit_masters(config, "fp16") and _has_16bit_masters(config, "bf16") and zero_stage(config) > 0
        ),
        "is said for fp16 and for bf16",
        "keep one of them",
        (_BASE, "not (self.fp16_master_weights_and_gradients and self.bf16_master_weights_and_gradients)"),
    ),
    EngineRule(
        "prescale_gradients",
        lambda config: bool(config.get("prescale_gradients")) and _averages_in_scattered_buckets(config),
        "does not go with reduce_scatter at ZeRO stages 2 and 3",
        "remove it, or set zero_optimization.reduce_scatter to false",
        (_STAGE12, "pre-scale gradients is not yet supported with"),
    ),
    EngineRule(
        "gradient_predivide_factor",
        lambda config: config.get("gradient_predivide_factor", 1) != 1 and _averages_in_scattered_buckets(config),
        "does not go with reduce_scatter at ZeRO stages 2 and 3",
        "remove it, or set zero_optimization.reduce_scatter to false",
        (_STAGE3, "gradient_predivide_factor != 1.0 is not yet supported with ZeRO-3"),
    ),
    EngineRule(
        "zero_optimization.compute_grad_norm",
        lambda config: _skips_the_norm(config) and bool(gradient_clipping(config)),
        "false does not go with gradient_clipping (1.0 where it is not said), which needs the norm",
        "remove it, or set gradient_clipping to 0",
        (_STAGE12, "compute_grad_norm=false requires gradient_clipping=0"),
    ),
    EngineRule(
        "zero_optimization.compute_grad_norm",
        lambda config: _skips_the_norm(config) and is_offloaded(config),
        "false does not go with optimizer offload",
        "remove it",
        (_STAGE12, "compute_grad_norm=false does not support optimizer offload"),
    ),
    EngineRule(
        "zero_optimization.compute_grad_norm",
        lambda config: _skips_the_norm(config) and _zenflow(config) is not None,
        "false does not go with zenflow",
        "remove it",
        (_STAGE12, "compute_grad_norm=false does not support ZenFlow"),
    ),
    EngineRule(
        "zero_optimization.compute_grad_norm",
        lambda config: _skips_the_norm(config) and is_bf16_optimizer(config),
        "false does not go with bf16 gradients that are summed in fp32 at stage 1",
        "remove it, or data_types.grad_accum_dtype",
        ("runtime/engine.py", "compute_grad_norm=false does not support ZeRO Stage 1 with "),
    ),
    EngineRule(
        "zero_optimization.offload_optimizer.ratio",
        lambda config: (
            zero_stage(config) == 3
            and is_offloaded(config)
            and block(_zero(config), "offload_optimizer").get("ratio", 1) < 1
            and not runs_cpu_adam(config)
        ),
        "below 1 needs DeepSpeed's CPU Adam: Adam or AdamW without torch_adam",
        "remove it",
        (_STAGE3, "Hybrid Optimizer Only Supports DeepSpeedCPUAdam"),
    ),
    EngineRule(
        "fp16.loss_scale",
        lambda config: (
            str(block(config, "optimizer").get("type")).lower() == "lamb"
            and bool(block(config, "fp16").get("loss_scale"))
        ),
        "Lamb needs a dynamic loss scale",
        "set it to 0",
        ("runtime/engine.py", "optimizer requires dynamic loss scaling"),
    ),
    EngineRule(
        "compile.autoep_non_moe",
        lambda config: bool(block(config, "compile").get("autoep_non_moe")),
        "is for models with experts, and this one has none",
        "remove it",
        ("runtime/compiler.py", "requires at least one AutoEPMoELayer"),
    ),
    EngineRule(
        "zero_optimization.zenflow",
        _zenflow_is(lambda config, zenflow: not is_offloaded(config) and zero_stage(config) in (1, 2)),
        "needs optimizer offload",
        'add "offload_optimizer": {"device": "cpu"}, or remove it',
        (_ZENFLOW, "Zenflow must be used with cpu offload"),
    ),
    EngineRule(
        "optimizer.type",
        _zenflow_is(
            lambda config, zenflow: is_offloaded(config) and zero_stage(config) in (1, 2) and not _is_any_adam(config)
        ),
        "zenflow steps DeepSpeed's CPU Adam alone",
        'write "AdamW", or remove zenflow',
        (_ZENFLOW, "self.optimizer.step(step_id=self.micro_step + 1)"),
    ),
    EngineRule(
        "zero_optimization.zenflow",
        _zenflow_is(lambda config, zenflow: zero_stage(config) == 0),
        "needs ZeRO stage 1 or 2, and the engine breaks off with it at stage 0",
        "set zero_optimization.stage to 1 or 2, or remove it",
        ("runtime/engine.py", "self.optimizer.zenflow_state"),
    ),
    EngineRule(
        "zero_optimization.zenflow",
        _zenflow_is(lambda config, zenflow: zero_stage(config) == 3),
        "transposes matrices at stage 3, which fails with this model",
        "set zero_optimization.stage to 1 or 2, or remove it",
        (_STAGE3, "if self.zenflow and len(param.ds_shape) != 1:"),
    ),
    EngineRule(
        "zero_optimization.reduce_scatter",
        _zenflow_is(
            lambda config, zenflow: zero_stage(config) in (1, 2) and _zero(config).get("reduce_scatter", True) is False
        ),
        "false does not go with zenflow",
        "remove it",
        (_ZENFLOW, "self.gradient_reduction_w_predivide(tensor)"),
    ),
    EngineRule(
        "zero_optimization.zero_quantized_gradients",
        lambda config: (
            zero_stage(config) == 3
            and bool(_zero(config).get("zero_quantized_gradients"))
            and _zero(config).get("reduce_scatter", True) is False
        ),
        "needs reduce_scatter",
        "remove it, or set zero_optimization.reduce_scatter to true",
        (_STAGE3, "when enable all_to_all_reduce, reduce_scatter should also be enabled"),
    ),
    EngineRule(
        "zero_optimization.zero_quantized_weights",
        lambda config: (
            bool(_zero(config).get("zero_quantized_weights")) and block(config, "torch_autocast").get("enabled") is True
        ),
        "does not go with torch_autocast",
        "remove one of them",
        ("runtime/torch_autocast.py", "Cannot enable both torch autocast and zero quantized weights"),
    ),
    EngineRule(
        "torch_autocast.enabled",
        lambda config: (
            zero_stage(config) == 0
            and block(config, "fp16").get("enabled") is True
            and block(config, "torch_autocast").get("enabled") is True
            and dtype_family(block(config, "torch_autocast").get("dtype", "fp16")) == "fp16"
        ),
        "scales the loss itself at ZeRO stage 0, and finds no gradients to check beside fp16's optimizer",
        "keep one of fp16 and torch_autocast",
        ("runtime/engine.py", "self.torch_autocast_z0_gradscaler"),
    ),
    EngineRule(
        "zero_optimization.zenflow.select_interval",
        _zenflow_is(
            lambda config, zenflow: _strategy(zenflow) == "auto" and isinstance(zenflow.get("select_interval"), int)
        ),
        "is a number, and select_strategy is auto",
        'remove it, or set select_strategy to "step" or "epoch"',
        (_ZENFLOW, "If use auto select strategy, select_interval will be set to 1"),
    ),
    EngineRule(
        "zero_optimization.zenflow.select_interval",
        _zenflow_is(
            lambda config, zenflow: (
                _strategy(zenflow) != "auto" and not isinstance(zenflow.get("select_interval", "auto"), int)
            )
        ),
        "has to be a number where select_strategy is not auto",
        "write a number of steps or epochs",
        (_ZENFLOW, "If don't use auto select strategy, select_interval must be a number."),
    ),
    EngineRule(
        "zero_optimization.zenflow.select_interval",
        _zenflow_is(_selects_too_often),
        "is shorter than update_interval",
        "make it as long, or longer",
        (_ZENFLOW, "Select interval must be greater or equal to update interval"),
    ),
    EngineRule(
        "zero_optimization.zenflow.offload",
        _zenflow_is(_has_no_overlap),
        "needs overlap_comm",
        'add "overlap_comm": true to zero_optimization, or remove it',
        (_ZENFLOW, "offload selective optimizer should be used with overlap_comm"),
    ),
)


def refused_by_the_engine(config: Config) -> Iterator[Mistake]:
    for rule in ENGINE_RULES:
        if rule.when(config):
            yield Mistake(rule.key, rule.problem, hint=rule.hint)
    yield from _foreign_parameters(config)


def _foreign_parameters(config: Config) -> Iterator[Mistake]:
    """Names among the optimizer's params that its class in torch does not take."""
    kind = str(block(config, "optimizer").get("type"))
    given = block(block(config, "optimizer"), "params")
    if _zenflow(config) is not None:
        takes, who = params.TORCH_TAKES["AdamW"], "ZenFlow's AdamW"
    elif kind.lower() == "adagrad" and not is_offloaded(config):
        takes, who = params.TORCH_TAKES["Adagrad"], "torch.optim.Adagrad"
    elif kind in params.TORCH_TAKES and kind.lower() not in params.DEEPSPEED_OPTIMIZERS:
        takes, who = params.TORCH_TAKES[kind], f"torch.optim.{kind}"
    else:
        return
    if given.get("fused") and given.get("foreach"):
        yield Mistake("optimizer.params.foreach", "fused and foreach cannot both be true", hint="remove it")
    for name in (name for name in given if name not in takes):
        yield Mistake(f"optimizer.params.{name}", f"{who} does not take this", hint="remove it")
