"""Holds a raw configuration against the table: what is unknown, refused, of the wrong kind, or an unfillable "auto"."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Any

from dist_trainer.config.deepspeed.keys import FREE_FORM, Key, Rows, children, table
from dist_trainer.config.deepspeed.mistakes import Mistake
from dist_trainer.config.deepspeed.params import Params, optimizer_params, scheduler_params

AUTO = "auto"
_NO_ROWS = Params({}, open_ended=True)


def params_at(path: str, parent: Mapping[str, Any]) -> Params:
    """The rows of the block at `path`, which stands in `parent`: those of its type, where it is the params of one."""
    kind = parent.get("type")
    if path == "optimizer.params":
        return optimizer_params(kind) if isinstance(kind, str) else _NO_ROWS
    if path == "scheduler.params":
        return scheduler_params(kind) if isinstance(kind, str) else _NO_ROWS
    return Params(children().get(path, {}))


def _elsewhere(name: str) -> list[str]:
    """Where else in the table a key of this name stands, the shallowest first; not in blocks of no use here."""
    useful = [path for path in table() if table()[path.partition(".")[0]].idle is None]
    places = [path for path in useful if path.rpartition(".")[2] == name]
    if name in optimizer_params("adamw").rows:
        places.append(f"optimizer.params.{name}")
    return sorted(places, key=lambda place: (place.count("."), place))


def _nearest(name: str, rows: Rows) -> str | None:
    """What was probably meant: a sibling nearly so called, the same name elsewhere, or else a likeness anywhere."""
    known = [sibling for sibling, key in rows.items() if key.refused is None]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if close:
        return f'did you mean "{close[0]}"?'
    holding = [sibling for sibling in known if len(name) > 5 and name in sibling]
    if holding:
        return f'did you mean "{min(holding, key=len)}"?'
    places = _elsewhere(name)
    if places and len(places) <= 3:
        return "this key belongs at " + " or ".join(places)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f'did you mean "{close[0]}"?'
    leaves = {path.rpartition(".")[2] for path, key in table().items() if key.refused is None}
    close = difflib.get_close_matches(name, sorted(leaves), n=1, cutoff=0.75)
    places = _elsewhere(close[0]) if close else []
    return f"did you mean {places[0]}?" if places else None


def _unknown(path: str, name: str, rows: Rows) -> Mistake:
    if name.startswith(("_", "#", "//")) or "comment" in name.lower():
        return Mistake(path, "unknown key", hint="remove it: DeepSpeed's JSON has no place for comments")
    return Mistake(path, "unknown key", hint=_nearest(name, rows))


def _unfilled(path: str) -> Mistake:
    return Mistake(path, 'nothing fills this "auto"', hint="write a value, or remove the key for DeepSpeed's default")


def _value(value: Any, path: str, key: Key, parent: Mapping[str, Any], mistakes: list[Mistake]) -> Any:
    try:
        plain = key.type.read(value)
    except (ValueError, OverflowError):
        if value != AUTO:
            problem = "null is not accepted here" if value is None else "not a value this key can have"
            mistakes.append(Mistake(path, problem, found=value, expected=key.type.expected))
        elif key.auto is None:
            mistakes.append(_unfilled(path))
        return value
    if isinstance(plain, Mapping) and path not in FREE_FORM:
        return _block(plain, path, params_at(path, parent), mistakes)
    return copy.deepcopy(plain)


def _block(raw: Mapping[str, Any], path: str, params: Params, mistakes: list[Mistake]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in raw.items():
        dotted = f"{path}.{name}" if path else name
        key = params.rows.get(name)
        if key is None and params.open_ended:
            if value == AUTO:
                mistakes.append(_unfilled(dotted))
            result[name] = copy.deepcopy(value)
        elif key is None:
            mistakes.append(_unknown(dotted, name, params.rows))
        elif key.refused is not None:
            mistakes.append(Mistake(dotted, key.refused, hint=key.instead))
        elif key.alias_of is not None and key.alias_of in raw:
            mistakes.append(Mistake(dotted, f"said twice: {key.alias_of} is the same key", hint="keep one of them"))
        else:
            result[key.alias_of or name] = _value(value, dotted, key, raw, mistakes)
    return result


def examine(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[Mistake]]:
    """The configuration with plain values (whole numbers as int, one spelling for each key; an "auto" stays), as a
    deep copy, and every mistake that the table alone can tell."""
    mistakes: list[Mistake] = []
    return _block(raw, "", params_at("", {}), mistakes), mistakes
