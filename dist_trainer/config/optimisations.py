"""The command line's switches for single optimisations, applied to a DeepSpeed JSON before it is resolved.

Functions do not modify their arguments unless they say so. A switch overrides the file.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from dist_trainer import strict_json
from dist_trainer.config.deepspeed import batch, rates
from dist_trainer.config.deepspeed.file import parse
from dist_trainer.config.deepspeed.mistakes import json_text
from dist_trainer.config.deepspeed.params import DEFAULT_OPTIMIZER, MUON_RATES, is_adam
from dist_trainer.config.deepspeed.rules import block, dtype_family, offload_device, precision, zero_stage
from dist_trainer.config.request import Precision, Switches
from dist_trainer.errors import UserError
from dist_trainer.strict_json import MAX_DEPTH
from dist_trainer.units import whole_number


def apply(raw: Mapping[str, Any], switches: Switches) -> dict[str, Any]:
    """A copy of `raw` with the switches applied.

    A micro batch drops the file's `train_batch_size`, and so does an accumulation together with a micro batch, because
    the total then follows from the world size. A precision drops the file's other 16-bit block and `torch_autocast`. A
    checkpointing or compile switch adds or removes the block, whose presence means on. A learning rate is the
    schedule's peak, whichever key of the file holds that.
    """
    config = copy.deepcopy(dict(raw))
    _set_batch(config, switches)
    if switches.precision is not None:
        set_precision(config, switches.precision)
        config.pop("torch_autocast", None)
    _set_present(config, "activation_checkpointing", switches.checkpointing, {})
    _set_present(config, "compile", switches.compile, {"deepcompile": False})
    if switches.fused is not None:
        _set_fused(config, switches.fused)
    if switches.learning_rate is not None:
        _set_learning_rate(config, switches.learning_rate)
    return config


def _set_batch(config: dict[str, Any], switches: Switches) -> None:
    for switch, size in (("--micro-batch", switches.micro_batch), ("--accumulation", switches.accumulation)):
        if size is not None and size < 1:
            raise UserError("not a number of samples", where=switch, found=size, expected="a whole number >= 1")
    if switches.micro_batch is not None:
        config[batch.MICRO] = switches.micro_batch
    if switches.accumulation is not None:
        config[batch.ACCUMULATION] = switches.accumulation
    # Without a micro batch the total is kept, because the micro batch is derived from it.
    if switches.micro_batch is not None or (switches.accumulation is not None and config.get(batch.MICRO) is not None):
        config.pop(batch.TRAIN, None)


def set_precision(config: dict[str, Any], wanted: Precision) -> None:
    """Modifies `config`: enables the wanted block and keeps its other keys, removes the other block, and removes
    `data_types` that DeepSpeed would find contradictory."""
    for name in ("fp16", "bf16", "bfloat16"):
        if name == wanted:
            config[name] = {**block(config, name), "enabled": True}
        elif name == "bfloat16" and wanted == "bf16" and name in config:
            config["bf16"] = {**block(config, "bfloat16"), **block(config, "bf16"), "enabled": True}
            del config[name]
        else:
            config.pop(name, None)
    data_types = config.get("data_types")
    if isinstance(data_types, dict):
        data_types.pop("param_dtype", None)
        accumulated = data_types.get("grad_accum_dtype")
        if isinstance(accumulated, str) and dtype_family(accumulated) not in ("fp32", wanted):
            del data_types["grad_accum_dtype"]


def _set_present(config: dict[str, Any], name: str, wanted: bool | None, content: dict[str, Any]) -> None:
    if wanted:
        config.setdefault(name, content)
    elif wanted is not None:
        config.pop(name, None)


def _optimizer_params(config: dict[str, Any]) -> dict[str, Any] | None:
    """The optimizer's params, to be modified in place; the default optimizer is added if the file has none. None if
    they are not an object, which check() reports."""
    if config.get("optimizer") is None:
        config["optimizer"] = copy.deepcopy(dict(DEFAULT_OPTIMIZER))
    optimizer = config["optimizer"]
    params = optimizer.setdefault("params", {}) if isinstance(optimizer, dict) else None
    return params if isinstance(params, dict) else None


def _set_learning_rate(config: dict[str, Any], rate: float) -> None:
    """Sets the optimizer's `lr` to the rate, and the scheduler's peak if it is given as a number. Other rates given as
    numbers (the start of a warm-up, one per group, Muon's two) are scaled in proportion; those that are "auto" or
    missing follow by themselves."""
    params = _optimizer_params(config)
    if params is None:
        return
    own = rates.own_rate(config)
    schedule = config["scheduler"].setdefault("params", {}) if own is not None else {}
    if not isinstance(schedule, dict):
        return
    if own is not None and own.unsaid is not None:
        schedule.setdefault(own.peak, rate)
    of_schedule = [] if own is None else [own.peak, *filter(None, [own.lowest])]
    said = [schedule.get(name) for name in of_schedule[:1]] + [params.get(name) for name in ("lr", *MUON_RATES)]
    before = next((rates.highest(value) for value in said if rates.is_rate(value) and rates.highest(value) > 0), rate)
    for place, names in ((schedule, of_schedule), (params, MUON_RATES)):
        for name in names:
            if rates.is_rate(place.get(name)):
                place[name] = _scaled(place[name], rate / before)
    params["lr"] = rate


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, list):
        return [_scaled(item, factor) for item in value]
    # Rounded: 6e-5 at half the rate becomes 3e-05, not 3.0000000000000004e-05.
    return float(f"{value * factor:.12g}")


def _set_fused(config: dict[str, Any], fused: bool) -> None:
    """torch's AdamW takes `fused` if `torch_adam` is set. With optimizer offload DeepSpeed's own CPU Adam is the fused
    one, so `fused` then removes torch's."""
    params = _optimizer_params(config)
    if params is None:
        return
    if not is_adam(config):
        raise UserError(
            "only Adam and AdamW have a fused and an unfused form to choose",
            where="--fused" if fused else "--no-fused",
            key="optimizer.type",
            found=config["optimizer"].get("type"),
            hint="leave the switch out, or use an AdamW in the JSON",
        )
    if fused and offload_device(config, "optimizer") != "none":
        for name in ("torch_adam", "fused", "foreach"):
            params.pop(name, None)
    else:
        use_torch_adam(params, fused=fused)


def use_torch_adam(params: dict[str, Any], *, fused: bool) -> None:
    """Modifies optimizer parameters so that DeepSpeed builds torch's Adam. Removes keys that torch's does not have:
    bias_correction (it always corrects) and set_grad_none."""
    params.update(torch_adam=True, fused=fused)
    params.pop("set_grad_none", None)
    if params.get("bias_correction"):
        del params["bias_correction"]
    if fused:
        params.pop("foreach", None)


def set_path(config: Mapping[str, Any], dotted: str, text: str) -> dict[str, Any]:
    """A copy of `config` with one value set, as in `--set dotted.path=text`; missing objects on the path are made.

    A number in the path is the index of an existing list item, from 0. `text` is parsed as JSON (5e7, true, null,
    [1, 2]); if it is not JSON, it is taken as a string.
    """
    names = dotted.split(".")
    if not all(names) or len(names) > MAX_DEPTH:
        raise UserError("not a dotted path", where="--set", found=dotted[:80], expected="names with dots between them")
    result = copy.deepcopy(dict(config))
    place: Any = result
    for depth, name in enumerate(names[:-1], start=1):
        inner = place[_index(place, name, dotted)] if isinstance(place, list) else place.setdefault(name, {})
        if not isinstance(inner, (dict, list)):
            raise UserError(
                "there is a value here, not an object that could hold the rest of the path",
                where=f"--set {dotted}",
                key=".".join(names[:depth]),
                found=json_text(inner),
            )
        place = inner
    last = _index(place, names[-1], dotted) if isinstance(place, list) else names[-1]
    place[last] = _json_or_text(text)
    return result


def _index(items: list[Any], name: str, dotted: str) -> int:
    index = whole_number(name)
    if index is not None and index < len(items):
        return index
    raise UserError(
        "there is no such item in the list",
        where=f"--set {dotted}",
        key=name,
        expected=f"a number from 0 to {len(items) - 1}",
    )


def _json_or_text(text: str) -> Any:
    try:
        strict_json.loads(text)
    except json.JSONDecodeError:
        return text
    except strict_json.TooMuchError:
        pass  # parse() says what is wrong with it
    return parse(text, source="--set")


def describe(resolved: Mapping[str, Any]) -> dict[str, str]:
    """The optimisations in force, for people."""
    return {
        "accumulation": str(resolved[batch.ACCUMULATION]),
        "precision": _precision(resolved),
        "checkpointing": _checkpointing(resolved),
        "fused optimizer": _fused(resolved),
        "compile": _compile(resolved),
        "learning rate": _learning_rate(resolved),
        "scheduler": _scheduler(resolved),
        "zero stage": str(zero_stage(resolved)),
        "offload": _offload(resolved),
    }


def _precision(resolved: Mapping[str, Any]) -> str:
    name = precision(resolved)
    autocast = block(resolved, "torch_autocast")
    if name == "fp16":
        scale = block(resolved, "fp16").get("loss_scale", 0)
        name += f", loss scale {scale:g}" if scale else ", dynamic loss scale"
    return f"{name}, torch autocast" if autocast.get("enabled") else name


def _checkpointing(resolved: Mapping[str, Any]) -> str:
    if "activation_checkpointing" not in resolved:
        return "off"
    return "on, kept on the CPU" if block(resolved, "activation_checkpointing").get("cpu_checkpointing") else "on"


def _fused(resolved: Mapping[str, Any]) -> str:
    """Whether the update runs as one fused kernel, and whose optimizer it is."""
    optimizer = block(resolved, "optimizer")
    params = block(optimizer, "params")
    kind = str(optimizer.get("type"))
    offloaded = offload_device(resolved, "optimizer") != "none"
    if is_adam(resolved) and params.get("torch_adam"):
        weight_decay_apart = kind.lower() == "adamw" or params.get("adam_w_mode", True)
        name = "AdamW" if weight_decay_apart else "Adam"
        return f"yes (torch's {name})" if params.get("fused") else f"no (torch's {name})"
    own = {"adam": ("FusedAdam", "CPUAdam"), "adamw": ("FusedAdam", "CPUAdam"), "lion": ("FusedLion", "CPULion")}
    own |= {"lamb": ("FusedLamb", "FusedLamb")}
    if kind.lower() in own:
        return f"yes (DeepSpeed's {own[kind.lower()][offloaded]})"
    if kind.lower() == "adagrad" and offloaded:
        return "yes (DeepSpeed's CPUAdagrad)"
    return f"yes (torch's {kind})" if params.get("fused") else f"no ({kind})"


def _compile(resolved: Mapping[str, Any]) -> str:
    if "compile" not in resolved:
        return "off"
    return "DeepCompile" if block(resolved, "compile").get("deepcompile") else "torch.compile"


def _learning_rate(resolved: Mapping[str, Any]) -> str:
    rate = rates.peak_rate(resolved)
    return "the optimizer's own" if rate is None else f"{rate:g}"


def _scheduler(resolved: Mapping[str, Any]) -> str:
    return str(block(resolved, "scheduler").get("type", "none (constant rate)"))


def _offload(resolved: Mapping[str, Any]) -> str:
    parts = [
        f"{word} to {device}"
        for word, device in (
            ("optimizer", offload_device(resolved, "optimizer")),
            ("parameters", offload_device(resolved, "param")),
        )
        if device != "none"
    ]
    return " and ".join(parts) or "none"
