"""What the table cannot tell of one key alone: keys that contradict each other, and choices this program cannot run.

Each rule takes a configuration with plain values (see check.examine; an "auto" may still stand in it) and
yields the mistakes it finds. What DeepSpeed would raise only after all ranks have started is said here instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from dist_trainer.config.deepspeed import params
from dist_trainer.config.deepspeed.mistakes import Mistake
from dist_trainer.units import counted

Config = Mapping[str, Any]

_SCHEDULERS_REFUSED = {
    "LambdaLR": "its function cannot be said in JSON",
    "MultiplicativeLR": "its function cannot be said in JSON",
    "SequentialLR": "its schedulers cannot be said in JSON",
    "ChainedScheduler": "its schedulers cannot be said in JSON",
    "ReduceLROnPlateau": "it needs a metric at each step, which DeepSpeed does not hand it",
}
_EPOCHS_OF_STEPS = ("epochs", "steps_per_epoch")
# Optimizers that DeepSpeed builds in one class with optimizer offload and in another without it.
_NOT_WITH_OFFLOAD = {
    "adam": ("set_grad_none",),
    "adamw": ("set_grad_none",),
    "lion": ("set_grad_none",),
    "adagrad": ("lr_decay", "initial_accumulator_value", "foreach", "fused", "maximize", "differentiable"),
}
_ONLY_WITH_OFFLOAD = {"lion": ("fp32_optimizer_states",), "adagrad": ("amsgrad", "fp32_optimizer_states")}
# Optimizers that cannot train this program's model, with why.
_OPTIMIZERS_REFUSED = {
    "lbfgs": "it asks for the loss several times a step, which DeepSpeed does not do",
    "sparseadam": "it takes sparse gradients alone, and this model's are dense",
    **dict.fromkeys(("muadam", "muadamw", "musgd"), "it is for models made with mup, which this program's are not"),
}
# Optimizers that need whole matrices, where ZeRO gives them flat pieces.
_OF_WHOLE_MATRICES = ("adafactor", "lamb")


def block(config: Config, name: str) -> Mapping[str, Any]:
    """The named block, or an empty one where it is absent, null, or the old true/false form."""
    value = config.get(name)
    return value if isinstance(value, Mapping) else {}


def zero_stage(config: Config) -> int:
    """0 where there is no block; the old `true` is stage 1; an "auto" counts as what it will become."""
    value = config.get("zero_optimization")
    if isinstance(value, bool):
        return int(value)
    stage = block(config, "zero_optimization").get("stage", 0)
    return 2 if stage == "auto" else int(stage)


def offload_device(config: Config, what: str) -> str:
    """'none', 'cpu' or 'nvme' for `what` = 'optimizer' or 'param', in DeepSpeed's new form or its old one."""
    zero = block(config, "zero_optimization")
    if zero.get({"optimizer": "cpu_offload", "param": "cpu_offload_param"}[what]):
        return "cpu"
    device = str(block(zero, f"offload_{what}").get("device", "none"))
    return "none" if device == "auto" else device


def precision(config: Config) -> str:
    """'fp16', 'bf16' or 'fp32': the dtype in which DeepSpeed keeps the weights."""
    for name in ("fp16", "bf16"):
        if block(config, name).get("enabled") is True:
            return name
    return "fp32"


def gradient_clipping(config: Config) -> float | None:
    """The norm to which gradients are clipped, 0 for none; without the key DeepSpeed 0.19.8 clips to 1.0.

    None for an "auto" that is not filled yet.
    """
    said = config.get("gradient_clipping", 1.0)
    return None if said == "auto" else float(said)


def dtype_family(name: str) -> str:
    """'fp32', 'fp16' or 'bf16' for any of DeepSpeed's spellings ("torch.half", "bfloat16", ...)."""
    bare = name.removeprefix("torch.")
    if bare in ("fp32", "float32", "float"):
        return "fp32"
    return "fp16" if bare in ("fp16", "float16", "half") else "bf16"


def is_bf16_optimizer(config: Config) -> bool:
    """Whether DeepSpeed takes its BF16_Optimizer: at stage 1, if bf16 gradients are summed in fp32, not on the CPU."""
    sums = block(config, "data_types").get("grad_accum_dtype")
    return (
        zero_stage(config) == 1
        and precision(config) == "bf16"
        and sums is not None
        and dtype_family(sums) == "fp32"
        and offload_device(config, "optimizer") != "cpu"
    )


def _both_precisions(config: Config) -> Iterator[Mistake]:
    if all(block(config, name).get("enabled") is True for name in ("fp16", "bf16")):
        yield Mistake("bf16.enabled", "fp16 and bf16 are both enabled", hint="enable one of them")


def _data_types(config: Config) -> Iterator[Mistake]:
    if any(block(config, name).get("enabled") == "auto" for name in ("fp16", "bf16")):
        return
    model = precision(config)
    for key in ("param_dtype", "grad_accum_dtype"):
        asked = block(config, "data_types").get(key)
        if asked is not None and dtype_family(asked) != model and (key == "param_dtype" or zero_stage(config) == 0):
            yield Mistake(
                f"data_types.{key}",
                f"does not go with the precision in force, {model}" + ("" if key == "param_dtype" else ", at stage 0"),
                found=asked,
                hint="remove it, or change the precision",
            )


def _fp16(config: Config) -> Iterator[Mistake]:
    fp16 = block(config, "fp16")
    if fp16.get("enabled") is True and fp16.get("loss_scale", 0) == 0:
        for key in ("loss_scale_window", "min_loss_scale"):
            if fp16.get(key, 1) < 1:
                yield Mistake(
                    f"fp16.{key}", "dynamic loss scaling needs it above 0", found=fp16[key], expected="a number >= 1"
                )


def _master_weights(config: Config) -> Iterator[Mistake]:
    bf16 = block(config, "bf16")
    flags = {
        "fp16.fp16_master_weights_and_grads": block(config, "fp16").get("fp16_master_weights_and_grads"),
        "bf16.bf16_master_weights_and_grads": bf16.get("bf16_master_weights_and_grads"),
        "bf16.bf16_optimizer_states": bf16.get("bf16_optimizer_states"),
    }
    if zero_stage(config) == 0:
        for key, value in flags.items():
            if value:
                yield Mistake(key, "needs ZeRO", hint="set zero_optimization.stage to 1, 2 or 3")
    if flags["bf16.bf16_optimizer_states"] and not flags["bf16.bf16_master_weights_and_grads"]:
        yield Mistake("bf16.bf16_optimizer_states", "needs bf16.bf16_master_weights_and_grads", hint="enable that too")


def _zero(config: Config) -> Iterator[Mistake]:
    zero, stage = block(config, "zero_optimization"), zero_stage(config)
    if zero.get("legacy_stage1"):
        yield Mistake("zero_optimization.legacy_stage1", "DeepSpeed has removed the old stage 1", hint="remove it")
    if zero.get("compute_grad_norm") is False and stage not in (1, 2):
        yield Mistake("zero_optimization.compute_grad_norm", "may be false only at stage 1 or 2", hint="remove it")
    optimizer = block(zero, "offload_optimizer")
    if optimizer.get("ratio", 1) < 1 and stage != 3:
        yield Mistake("zero_optimization.offload_optimizer.ratio", "may be below 1 only at stage 3", hint="remove it")
    for what, old in (("optimizer", "cpu_offload"), ("param", "cpu_offload_param")):
        inner = block(zero, f"offload_{what}")
        if inner.get("device") == "nvme" and not inner.get("nvme_path"):
            yield Mistake(f"zero_optimization.offload_{what}.nvme_path", "is missing: the device is nvme")
        if old in zero and f"offload_{what}" in zero:
            yield Mistake(
                f"zero_optimization.{old}",
                f"is the old spelling of offload_{what}, which is there too",
                hint="remove it",
            )
    if config.get("gradient_allreduce_op", "mean").lower() == "sum":
        against = {
            "ZeRO stage 3": stage == 3,
            "zenflow": zero.get("zenflow") is not None,
            "compile.deepcompile": bool(block(config, "compile").get("deepcompile")),
        }
        for what in (name for name, there in against.items() if there):
            yield Mistake("gradient_allreduce_op", f'"sum" does not go with {what}', hint='write "mean"')


def _optimizer_type(kind: str) -> Mistake | None:
    lowered = kind.lower()
    if lowered in _OPTIMIZERS_REFUSED:
        return Mistake("optimizer.type", _OPTIMIZERS_REFUSED[lowered], found=kind, hint='write "AdamW"')
    if lowered in params.DEEPSPEED_OPTIMIZERS or kind in params.TORCH_OPTIMIZERS:
        return None
    if lowered in params.REMOVED_OPTIMIZERS:
        return Mistake(
            "optimizer.type",
            "DeepSpeed 0.19.8 does not build this by name",
            found=kind,
            hint="write one of Adam, AdamW, Lamb, Lion, Adagrad, Muon; DeepSpeed picks the fused or CPU form",
        )
    known = ["Adam", "AdamW", "Lamb", "Lion", *params.TORCH_OPTIMIZERS]
    known = [name for name in known if name.lower() not in _OPTIMIZERS_REFUSED]
    close = difflib.get_close_matches(lowered, [name.lower() for name in known], n=1, cutoff=0.6)
    nearest = next((name for name in known if close and name.lower() == close[0]), None)
    return Mistake(
        "optimizer.type",
        "no such optimizer in DeepSpeed or torch.optim",
        found=kind,
        hint=f'did you mean "{nearest}"?' if nearest else "write one of " + ", ".join(sorted(set(known))),
    )


def _optimizer(config: Config) -> Iterator[Mistake]:
    optimizer = config.get("optimizer")
    if optimizer is None:
        return
    kind = optimizer.get("type")
    if kind is None:
        yield Mistake("optimizer.type", "is missing", hint='write "AdamW"')
        return
    wrong = _optimizer_type(kind)
    if wrong is not None:
        yield wrong
        return
    allowed = config.get("zero_allow_untested_optimizer", False)
    if zero_stage(config) > 0 and kind.lower() not in params.ZERO_TESTED_OPTIMIZERS and not allowed:
        yield Mistake(
            "zero_allow_untested_optimizer",
            f"DeepSpeed runs ZeRO with {kind} only when this is true",
            hint='add "zero_allow_untested_optimizer": true',
        )
    yield from _optimizer_and_stage(kind, config)
    given = block(optimizer, "params")
    if params.is_adam(config):
        yield from _adam(given, offloaded=offload_device(config, "optimizer") != "none")
    yield from _offload_params(kind.lower(), given, config)


def _optimizer_and_stage(kind: str, config: Config) -> Iterator[Mistake]:
    """Combinations with which DeepSpeed 0.19.8 would compute other updates than the optimizer's, or fail."""
    lowered, stage = kind.lower(), zero_stage(config)
    offloaded = offload_device(config, "optimizer") != "none"
    if stage > 0 and lowered in _OF_WHOLE_MATRICES:
        yield Mistake(
            "optimizer.type",
            f"ZeRO hands the optimizer flat pieces of matrices, on which {kind} computes other updates",
            found=kind,
            hint="set zero_optimization.stage to 0, or use AdamW",
        )
    if lowered == "adagrad" and not offloaded and (stage > 0 or precision(config) != "fp32"):
        yield Mistake(
            "optimizer.type",
            "DeepSpeed loses Adagrad's sums under ZeRO and in 16-bit, without optimizer offload",
            found=kind,
            hint='add "offload_optimizer": {"device": "cpu"}, or use ZeRO stage 0 in fp32, or AdamW',
        )
    if lowered == "muon" and stage == 3 and block(config, "zero_optimization").get("reduce_scatter", True) is not False:
        yield Mistake(
            "zero_optimization.reduce_scatter", "Muon at stage 3 needs whole gradients", hint="set it to false"
        )
    if lowered == "muon" and stage > 0 and gradient_clipping(config):
        yield Mistake(
            "gradient_clipping",
            "under ZeRO DeepSpeed clips Muon's finished update, not the gradient: its steps would be far too small",
            found=config.get("gradient_clipping", "nothing, which is 1.0"),
            hint="set it to 0: Muon's update does not grow with the gradient",
        )


def _adam(given: Mapping[str, Any], *, offloaded: bool) -> Iterator[Mistake]:
    path = "optimizer.params."
    if given.get("torch_adam"):
        for name in (name for name in params.DEEPSPEED_ADAM_ONLY if name in given):
            yield Mistake(path + name, "only DeepSpeed's own Adam takes this", hint="remove it, or torch_adam")
        if given.get("fused") and given.get("foreach"):
            yield Mistake(path + "foreach", "fused and foreach cannot both be true", hint="remove it")
        return
    for name in (name for name in params.TORCH_ADAM_ONLY if name in given):
        yield Mistake(path + name, "only torch's Adam takes this", hint='add "torch_adam": true beside it')
    if given.get("amsgrad") and not offloaded:
        yield Mistake(path + "amsgrad", "DeepSpeed's FusedAdam has no AMSGrad", hint='add "torch_adam": true beside it')


def _offload_params(kind: str, given: Mapping[str, Any], config: Config) -> Iterator[Mistake]:
    if given.get("torch_adam"):
        return
    offloaded = offload_device(config, "optimizer") != "none"
    names = (_NOT_WITH_OFFLOAD if offloaded else _ONLY_WITH_OFFLOAD).get(kind, ())
    for name in (name for name in names if name in given):
        which = "with" if offloaded else "without"
        yield Mistake(
            f"optimizer.params.{name}", f"{kind} does not take this {which} optimizer offload", hint="remove it"
        )


def _scheduler(config: Config) -> Iterator[Mistake]:
    scheduler = config.get("scheduler")
    if scheduler is None:
        return
    kind = scheduler.get("type")
    known = params.scheduler_table()
    if kind is None:
        yield Mistake("scheduler.type", "is missing", hint="write one of " + ", ".join(params.DEEPSPEED_SCHEDULERS))
    elif kind in _SCHEDULERS_REFUSED:
        yield Mistake("scheduler.type", _SCHEDULERS_REFUSED[kind], found=kind)
    elif kind not in known:
        close = difflib.get_close_matches(kind, known, n=1, cutoff=0.5)
        yield Mistake(
            "scheduler.type",
            "no such scheduler in DeepSpeed or torch.optim.lr_scheduler",
            found=kind,
            hint=f'did you mean "{close[0]}"?' if close else "write one of " + ", ".join(known),
        )
    else:
        for name in known[kind].required:
            if name not in block(scheduler, "params"):
                filled = known[kind].rows[name].auto is not None
                yield Mistake(f"scheduler.params.{name}", "is missing", hint='write "auto"' if filled else None)
        yield from _cyclic(kind, config)


def _cyclic(kind: str, config: Config) -> Iterator[Mistake]:
    """What torch's cyclic schedules need that the table cannot tell of one key alone."""
    given = block(block(config, "scheduler"), "params")
    optimizer = str(block(config, "optimizer").get("type", ""))
    moves_momentum = kind in ("CyclicLR", "OneCycleLR") and given.get("cycle_momentum", True)
    if moves_momentum and optimizer.lower() in params.OPTIMIZERS_WITHOUT_MOMENTUM:
        yield Mistake(
            "scheduler.params.cycle_momentum",
            f"{kind} moves the momentum unless this is false, and {optimizer} has none",
            hint='add "cycle_momentum": false',
        )
    says_length = given.get("total_steps") is not None or all(given.get(name) for name in _EPOCHS_OF_STEPS)
    if kind == "OneCycleLR" and not says_length:
        yield Mistake("scheduler.params.total_steps", "is missing", hint='write "auto"')


def too_short(config: Config, total_steps: int) -> list[Mistake]:
    """The mistake of a OneCycleLR that ends before the run's `total_steps`. `config` has no "auto" left."""
    given = block(block(config, "scheduler"), "params")
    if block(config, "scheduler").get("type") != "OneCycleLR":
        return []
    epochs, steps_per_epoch = (given.get(name) or 0 for name in _EPOCHS_OF_STEPS)
    steps = given.get("total_steps") or epochs * steps_per_epoch
    if steps >= total_steps:
        return []
    return [
        Mistake(
            "scheduler.params.total_steps",
            f"OneCycleLR has no rate for a step after its last; the run has {counted(total_steps, 'step')}",
            found=steps,
            expected=f"at least {total_steps}",
            hint='write "auto"',
        )
    ]


def _parallelism(config: Config) -> Iterator[Mistake]:
    data_only = "this program trains with data parallelism and ZeRO"
    if config.get("sequence_parallel_size", 1) > 1:
        yield Mistake("sequence_parallel_size", f"more than 1: {data_only}", hint="remove it")
    if block(config, "tensor_parallel").get("autotp_size", 0) > 1:
        yield Mistake("tensor_parallel.autotp_size", f"more than 1: {data_only}", hint="remove it")
    if block(config, "hybrid_engine").get("enabled"):
        yield Mistake("hybrid_engine.enabled", "is for generating while training, which is not done here")
    if config.get("managed_gradient_accumulation") is False:
        yield Mistake(
            "managed_gradient_accumulation", "this program lets DeepSpeed count the micro batches", hint="remove it"
        )


def contradictions(config: Config) -> list[Mistake]:
    rules = (
        *(_both_precisions, _data_types, _fp16, _master_weights, _zero),
        *(_optimizer, _scheduler, _parallelism),
    )
    return [mistake for rule in rules for mistake in rule(config)]
