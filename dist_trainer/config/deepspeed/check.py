"""Checks a raw configuration against the table: unknown or refused keys, wrong values, unfilled "auto"s."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dist_trainer.config.deepspeed.keys import FREE_FORM, MEANS_AUTO, MODELLED, Key, Rows, children, table
from dist_trainer.config.deepspeed.mistakes import Mistake
from dist_trainer.config.deepspeed.params import Params, optimizer_params, scheduler_params

AUTO = "auto"
SCHEMA = "$schema"
_NO_ROWS = Params({}, open_ended=True)
_BY_TYPE = ("optimizer.params", "scheduler.params")


@dataclass
class Examined:
    """`config` is what a file says, in plain values: whole numbers as int, one spelling for each key; an "auto" stays.

    Left out of it are the keys in `left_out` (an "auto" for which DeepSpeed takes its default) and in `remarks` (names
    that begin with _), both dotted paths, and a null in the place of a number, which says nothing. `mistakes` are all
    that the table alone can tell.
    """

    config: dict[str, Any] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def params_at(path: str, parent: Mapping[str, Any]) -> Params:
    """The rows of the block at the dotted `path`; `parent` is the block around it.

    The params of an optimizer or scheduler have the rows of the `type` that stands beside them in `parent`.
    """
    kind = parent.get("type")
    if path == "optimizer.params":
        return optimizer_params(kind) if isinstance(kind, str) else _NO_ROWS
    if path == "scheduler.params":
        return scheduler_params(kind) if isinstance(kind, str) else _NO_ROWS
    return Params(children().get(path, {}))


def _elsewhere(name: str) -> list[str]:
    """Where in the table keys of this name stand, the shallowest first, without blocks that do nothing here."""
    useful = [path for path in table() if table()[path.partition(".")[0]].idle is None]
    places = [path for path in useful if path.rpartition(".")[2] == name]
    if name in optimizer_params("adamw").rows:
        places.append(f"optimizer.params.{name}")
    return sorted(places, key=lambda place: (place.count("."), place))


def _nearest(path: str, name: str, rows: Rows) -> str | None:
    """What was probably meant: a sibling of a similar name, or a key of the same name elsewhere.

    A merely similar name in another block is not suggested: it is another key.
    """
    known = [sibling for sibling, key in rows.items() if key.refused is None]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if close:
        return f'did you mean "{close[0]}"?'
    holding = [sibling for sibling in known if len(name) > 5 and name in sibling]
    if holding:
        return f'did you mean "{min(holding, key=len)}"?'
    places = [place for place in _elsewhere(name) if place != path]
    if places and len(places) <= 3:
        return "this key belongs at " + " or ".join(places)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else None


def _unknown(path: str, name: str, rows: Rows) -> Mistake:
    if name.startswith(("#", "//")) or "comment" in name.lower():
        return Mistake(path, "unknown key", hint='write it as a comment, # or //, or begin its name with "_"')
    return Mistake(path, "unknown key", hint=_nearest(path, name, rows))


def _unfilled(path: str) -> Mistake:
    return Mistake(path, 'nothing fills this "auto"', hint="write a value, or remove the key for DeepSpeed's default")


def says_nothing(value: Any, path: str, key: Key) -> bool:
    """Whether this is a null in the place of a number, in a block that DeepSpeed reads as a plain dict.

    DeepSpeed takes its default for it, or fails at the first use.
    """
    block = path.rpartition(".")[0]
    is_plain = block not in MODELLED and block not in _BY_TYPE
    # Not for gradient_clipping: its null may be meant as "none", but an absent key means 1.0.
    return value is None and key.type.is_number and is_plain and path != "gradient_clipping"


def accepts_auto(path: str, key: Key) -> bool:
    """Whether "auto" may stand there: it is filled, left out for DeepSpeed's default, or a value like any other."""
    return key.auto is not None or path.rpartition(".")[0] in MODELLED


def _is_left_out(value: Any, path: str, key: Key) -> bool:
    return value == AUTO and key.auto is None and accepts_auto(path, key) and path not in MEANS_AUTO


def _value(value: Any, path: str, key: Key, parent: Mapping[str, Any], seen: Examined) -> Any:
    if value == AUTO and key.auto is not None:
        return value
    try:
        plain = key.type.read(value)
    except (ValueError, OverflowError):
        if value == AUTO:
            seen.mistakes.append(_unfilled(path))
        else:
            problem = "null is not accepted here" if value is None else "not a value this key can have"
            seen.mistakes.append(Mistake(path, problem, found=value, expected=key.type.expected))
        return value
    if isinstance(plain, Mapping) and path not in FREE_FORM:
        return _block(plain, path, params_at(path, parent), seen)
    return copy.deepcopy(plain)


def _block(raw: Mapping[str, Any], path: str, params: Params, seen: Examined) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in raw.items():
        dotted = f"{path}.{name}" if path else name
        key = params.rows.get(name)
        if dotted == SCHEMA:
            # It tells an editor which schema to check the file against.
            continue
        if name.startswith("_"):
            seen.remarks.append(dotted)
        elif key is None and params.open_ended:
            if value == AUTO:
                seen.mistakes.append(_unfilled(dotted))
            result[name] = copy.deepcopy(value)
        elif key is None:
            seen.mistakes.append(_unknown(dotted, name, params.rows))
        elif key.refused is not None:
            seen.mistakes.append(Mistake(dotted, key.refused, hint=key.instead))
        elif key.alias_of is not None and key.alias_of in raw:
            seen.mistakes.append(
                Mistake(dotted, f"said twice: {key.alias_of} is the same key", hint="keep one of them")
            )
        elif _is_left_out(value, dotted, key):
            seen.left_out.append(dotted)
        elif not says_nothing(value, dotted, key):
            result[key.alias_of or name] = _value(value, dotted, key, raw, seen)
    return result


def examine(raw: Mapping[str, Any]) -> Examined:
    """Checks a raw configuration against the table. The result is a deep copy."""
    seen = Examined()
    seen.config = _block(raw, "", params_at("", {}), seen)
    return seen
