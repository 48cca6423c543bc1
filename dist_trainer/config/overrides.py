"""What `--set`s and switches of the command line are to blame for: contradictions among them, and mistakes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dist_trainer.config.deepspeed import batch, rates
from dist_trainer.config.request import Switches
from dist_trainer.errors import UserError
from dist_trainer.redact import redacted_argv

_MISSING: Any = object()
# Switch -> the JSON keys that it sets. For a block whose presence means "on", only the presence is compared.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "micro_batch": (batch.MICRO,),
    "accumulation": (batch.ACCUMULATION,),
    "precision": ("fp16.enabled", "bf16.enabled"),
    "fused": ("optimizer.params.torch_adam", "optimizer.params.fused"),
    "checkpointing": ("activation_checkpointing",),
    "compile": ("compile",),
}
# Parameters of Adam that `--fused` and `--no-fused` may remove.
_ADAM_KEYS = ("torch_adam", "fused", "foreach", "bias_correction", "set_grad_none")


def _value(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return _MISSING
        value = value[name]
    return "there" if isinstance(value, Mapping) else value


def settings_said_again(settings: Sequence[str]) -> list[str]:
    """A line for each `--set` whose key, or a block that contains it, a later `--set` sets again."""
    keys = [setting.partition("=")[0] for setting in settings]
    shown = redacted_argv(settings)
    lines = []
    for place, (setting, key) in enumerate(zip(shown, keys, strict=True), start=1):
        later = next((i for i in range(place, len(keys)) if key == keys[i] or key.startswith(f"{keys[i]}.")), None)
        if later is not None:
            lines.append(f"--set {setting} does nothing: --set {shown[later]} comes after it")
    return lines


@contextmanager
def naming_settings(settings: Sequence[str], source: str) -> Iterator[None]:
    """A UserError of the block about a key of the file `source` names the last `--set` that set this key, a block that
    contains it, or a key below it.
    """
    try:
        yield
    except UserError as error:
        if error.where == source and error.key:
            for key in reversed([setting.partition("=")[0] for setting in settings]):
                if key == error.key:
                    error.where, error.key = f"--set {key}", None
                elif error.key.startswith(f"{key}."):
                    error.where = f"--set {key}"
                elif key.startswith(f"{error.key}."):
                    error.where = f"{source} with --set {key}"
                else:
                    continue
                break
        raise


def switches_set_again(switches: Switches, switched: Mapping[str, Any], final: Mapping[str, Any]) -> list[str]:
    """A line for each switch whose key has another value in `final`, with every `--set` applied, than in `switched`,
    with only the switches applied."""
    lines = []
    for name, keys in _KEYS.items():
        if getattr(switches, name) is None:
            continue
        changed = [key for key in keys if _value(switched, key) != _value(final, key)]
        if changed:
            lines.append(_overridden(switches, name, changed[0]))
    if switches.learning_rate is not None:
        before, after = rates.peak_rate(switched), rates.peak_rate(final)
        if after is not None and before != after:
            key, _ = rates.overriding_rate(final) or ("optimizer.params.lr", None)
            lines.append(_overridden(switches, "learning_rate", key))
    return lines


def _overridden(switches: Switches, name: str, key: str) -> str:
    return f"{_spelled(switches, name)} does nothing: --set {key} comes after it"


def _spelled(switches: Switches, name: str) -> str:
    value, words = getattr(switches, name), name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{words}" if value else f"--no-{words}"
    return f"--{words} {value}"


def dropped_by_switches(raw: Mapping[str, Any], switched: Mapping[str, Any], switches: Switches) -> list[str]:
    """A line for each key of the file that was removed by a switch for another key."""
    takers = {
        batch.TRAIN: "--accumulation" if switches.micro_batch is None else "--micro-batch",
        "torch_autocast.enabled": "--precision",
        "data_types.param_dtype": "--precision",
        "data_types.grad_accum_dtype": "--precision",
        **{f"optimizer.params.{name}": _spelled(switches, "fused") for name in _ADAM_KEYS},
    }
    return [
        f"{key} of the file does nothing: {taker} takes its place"
        for key, taker in takers.items()
        if _value(raw, key) not in (_MISSING, None, False) and _value(switched, key) is _MISSING
    ]
