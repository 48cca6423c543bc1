"""A DeepSpeed JSON: read, checked against the table, and resolved to the one dict that planner, engine and report use.

The table of keys is in keys.py (params.py: optimizers, schedulers), contradictions are in rules.py and engine_rules.py,
keys without effect in inert.py. Nothing here imports torch or deepspeed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.config.deepspeed import batch, inert
from dist_trainer.config.deepspeed.check import AUTO, examine, params_at
from dist_trainer.config.deepspeed.engine_rules import refused_by_the_engine
from dist_trainer.config.deepspeed.file import read
from dist_trainer.config.deepspeed.keys import Facts, Rows, children
from dist_trainer.config.deepspeed.mistakes import DeepSpeedFileError, Mistake, json_text
from dist_trainer.config.deepspeed.params import DEFAULT_OPTIMIZER, optimizer_params, scheduler_params
from dist_trainer.config.deepspeed.rates import idle_start
from dist_trainer.config.deepspeed.rules import block, contradictions, too_short
from dist_trainer.errors import UserError

__all__ = ["DeepSpeedFileError", "Facts", "Filled", "Mistake", "check", "filled", "read", "resolve", "warnings"]

_BATCH_KEYS = (batch.TRAIN, batch.MICRO, batch.ACCUMULATION)


def _of_all_keys(config: Mapping[str, Any]) -> list[Mistake]:
    """Mistakes that only several keys together show; of a key in contradictions(), not what the engine refuses too."""
    mistakes = contradictions(config)
    known = {mistake.key for mistake in mistakes}
    return [*mistakes, *(mistake for mistake in refused_by_the_engine(config) if mistake.key not in known)]


def _checked(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    seen = examine(raw)
    mistakes = seen.mistakes or _of_all_keys(seen.config)
    if mistakes:
        raise DeepSpeedFileError(mistakes, source)
    return seen.config


def check(raw: Mapping[str, Any], *, source: str) -> None:
    """Raises DeepSpeedFileError (a UserError) with everything in `raw` that DeepSpeed or this program cannot take.

    Contradictions between keys are looked for only if each key by itself is right.
    """
    _checked(raw, source)


def _modernise(config: dict[str, Any]) -> None:
    """Writes DeepSpeed's old forms in the new one, so that whoever reads the result need know only one."""
    zero = config.get("zero_optimization")
    if isinstance(zero, bool):
        size = config.get("allgather_size", 500_000_000)
        zero = {"stage": 1, "allgather_bucket_size": size} if zero else {"stage": 0}
        config["zero_optimization"] = zero
    config.pop("allgather_size", None)
    if zero is None:
        return
    pin = zero.pop("cpu_offload_use_pin_memory", None)
    for old, new in (("cpu_offload", "offload_optimizer"), ("cpu_offload_param", "offload_param")):
        if zero.pop(old, None):
            zero[new] = {"device": "cpu"} if pin is None else {"device": "cpu", "pin_memory": pin}


def _leave_out_null_blocks(values: dict[str, Any], path: str = "") -> None:
    for name in list(values):
        dotted = path + name
        if values[name] is None and dotted in children():
            del values[name]
        elif isinstance(values[name], dict) and dotted in children():
            _leave_out_null_blocks(values[name], f"{dotted}.")


def _fill(values: dict[str, Any], rows: Rows, facts: Facts, config: Mapping[str, Any]) -> None:
    for name, value in values.items():
        key = rows.get(name)
        if value == AUTO and key is not None and key.auto is not None and key.auto.value is not None:
            values[name] = key.auto.value(facts, config)


def _fill_autos(config: dict[str, Any], facts: Facts) -> None:
    # The optimizer goes first: a scheduler's peak may be filled with its learning rate.
    optimizer, scheduler = config["optimizer"], config.get("scheduler")
    _fill(optimizer["params"], optimizer_params(optimizer["type"]).rows, facts, config)
    if scheduler is not None:
        _fill(scheduler["params"], scheduler_params(scheduler["type"]).rows, facts, config)
    for path in children():
        values: Any = config
        for name in path.split(".") if path else ():
            values = values.get(name) if isinstance(values, dict) else None
        if isinstance(values, dict):
            _fill(values, children()[path], facts, config)


def resolve(raw: Mapping[str, Any], facts: Facts, *, source: str) -> dict[str, Any]:
    """The configuration in full, as a new dict that DeepSpeed accepts as it is.

    It holds no "auto" but DeepSpeed's own, all three batch sizes, whole numbers as int, one spelling for each key, and
    an optimizer (AdamW where the file names none: DeepSpeed cannot train without one). Raises UserError as check()
    does, and where the batch sizes do not multiply for this world size.
    """
    config = _checked(raw, source)
    _modernise(config)
    _leave_out_null_blocks(config)
    config.setdefault("optimizer", {**DEFAULT_OPTIMIZER, "params": dict(DEFAULT_OPTIMIZER["params"])})
    # DeepSpeed unpacks a scheduler's params even if there are none.
    for name in ("optimizer", "scheduler"):
        if name in config:
            config[name].setdefault("params", {})
    sizes = batch.derive(config, facts, source=source)
    _fill_autos(config, facts)
    config.update(dict(zip(_BATCH_KEYS, (sizes.train, sizes.micro, sizes.accumulation), strict=True)))
    mistakes = _of_all_keys(config) or too_short(config, facts.total_steps)
    if mistakes:
        raise DeepSpeedFileError(mistakes, source)
    return config


def read_resolved(path: Path) -> dict[str, Any]:
    """The result of `resolve`, from the file in a run's folder. Raises UserError if it is no such file, or damaged."""
    config = _checked(read(path), str(path))
    missing = [key for key in _BATCH_KEYS if config.get(key) is None]
    for key in (*missing, *(left.key for left in _autos(config, config, children()[""], ""))):
        found = "nothing" if key in missing else AUTO
        raise UserError("this is no resolved configuration", where=str(path), key=key, found=found)
    return config


def _schedule(resolved: Mapping[str, Any]) -> tuple[str, int] | None:
    """The key that says when the schedule ends, and after how many optimizer steps; None if it has no end."""
    params = block(block(resolved, "scheduler"), "params")
    for name in ("total_num_steps", "T_max", "total_steps"):
        if isinstance(params.get(name), int):
            return name, params[name]
    if block(resolved, "scheduler").get("type") == "OneCycle":
        first = params.get("cycle_first_step_size", 2000)
        second = params.get("cycle_second_step_size")
        return "cycle_first_step_size", first + (first if second is None else second)
    return None


@dataclass(frozen=True)
class Filled:
    """What was put in the place of an "auto", or of a missing optimizer: the dotted key, its value, and why.

    `is_left_out`: nothing was, because DeepSpeed takes its own default; the value is None then.
    """

    key: str
    value: Any
    why: str
    is_left_out: bool = False

    def __str__(self) -> str:
        return f"{self.key} {'left out' if self.is_left_out else f'= {json_text(self.value)}'} ({self.why})"


def _autos(said: Mapping[str, Any], resolved: Mapping[str, Any], rows: Rows, path: str) -> Iterator[Filled]:
    for name, value in said.items():
        dotted, key = path + name, rows.get(name)
        if isinstance(value, Mapping) and isinstance(resolved.get(name), Mapping):
            yield from _autos(value, resolved[name], params_at(dotted, said).rows, f"{dotted}.")
        elif value == AUTO and key is not None and key.auto is not None:
            yield Filled(dotted, resolved[name], key.auto.says)


def filled(raw: Mapping[str, Any], resolved: Mapping[str, Any]) -> list[Filled]:
    """What resolve() put in the place of each "auto", in the order of the file, and then what it left out."""
    seen = examine(raw)
    said = seen.config
    found = list(_autos(said, resolved, children()[""], ""))
    found += [Filled(key, None, 'DeepSpeed takes its default for "auto" here', True) for key in seen.left_out]
    if said.get("optimizer") is None:
        optimizer, why = resolved["optimizer"], "the file names no optimizer, and DeepSpeed needs one"
        found.append(Filled("optimizer.type", optimizer["type"], why))
        rows = optimizer_params(optimizer["type"]).rows
        found += _autos(DEFAULT_OPTIMIZER["params"], optimizer["params"], rows, "optimizer.params.")
    return found


def _idle_start(resolved: Mapping[str, Any]) -> list[str]:
    start = idle_start(resolved)
    if start is None:
        return []
    updates = "update has" if start.num_updates == 1 else f"{start.num_updates} updates have"
    return [f"the first {updates} a learning rate of 0, and do nothing: {start.key} is 0"]


def warnings(raw: Mapping[str, Any], resolved: Mapping[str, Any], facts: Facts) -> list[str]:
    """A line for each thing that is accepted but probably not what was meant, such as a key that does nothing.

    `raw` is the file as it was read, `resolved` what resolve() made of it.
    """
    seen = examine(raw)
    said = seen.config
    notices = [*inert.notices(said, resolved), *_idle_start(resolved)]
    notices += [f"{key} is left out: a key that begins with _ is a remark" for key in seen.remarks]
    checkpointing = block(said, "activation_checkpointing")
    if checkpointing and all(value is None or value is False for value in checkpointing.values()):
        notices.append(
            "activation_checkpointing: nothing in the block is switched on, and its being there switches checkpointing "
            "on here; remove it, or say --no-checkpointing, to train without"
        )
    schedule = _schedule(resolved)
    if schedule is not None and schedule[1] != facts.total_steps:
        key, steps = schedule
        notices.append(
            f"scheduler.params.{key}: the schedule ends at step {steps} and the run at step {facts.total_steps}; "
            'say "auto" to follow the phases'
        )
    warmup = (block(resolved, "scheduler").get("params") or {}).get("warmup_num_steps")
    if isinstance(warmup, int) and warmup > facts.total_steps:
        notices.append(
            f"scheduler.params.warmup_num_steps: the warm-up takes {warmup} steps and the run has {facts.total_steps}; "
            "the peak of the rate is never reached"
        )
    for kind in ("bf16", "fp16"):
        if block(resolved, kind).get(f"{kind}_master_weights_and_grads"):
            notices.append(
                f"{kind}.{kind}_master_weights_and_grads: the optimizer updates 16-bit weights, which lose what is "
                "small beside them: less memory, and a loss that may end higher"
            )
    return notices
