"""What a value in a DeepSpeed JSON may be: types that say what they expect and return the value in its plain form."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# What pydantic takes for a boolean; DeepSpeed's pydantic blocks accept these, its plain reads do not.
_WORDS = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "off", "0"), False),
}


# A number in quotation marks. JSON Schema has no range for those.
_NUMBER = r"^\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*$"


@dataclass(frozen=True)
class Type:
    """`expected` completes 'expected: ...'; `read` returns the plain value (5e8 -> 500000000) or raises ValueError;
    `schema` is a JSON Schema of what `read` takes; `is_number` marks integer() and number().
    """

    expected: str
    read: Callable[[Any], Any]
    schema: Mapping[str, Any]
    is_number: bool = False


def _boolean(lax: bool) -> Type:
    def read(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, (int, float)) and value in (0, 1):
            return bool(value)
        if lax and isinstance(value, str) and value.lower() in _WORDS:
            return _WORDS[value.lower()]
        raise ValueError

    words: list[Mapping[str, Any]] = [_text_of(*_WORDS)] if lax else []
    return Type("true or false", read, _any_of({"type": "boolean"}, {"enum": [0, 1]}, *words))


def _any_of(*schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}


def _text_of(*names: str) -> Mapping[str, Any]:
    """A JSON Schema of a string that is one of the names, in any case."""
    in_any_case = (
        "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else re.escape(c) for c in name) for name in names
    )
    return {"type": "string", "pattern": f"^({'|'.join(in_any_case)})$"}


def _limits(low: float | None, high: float | None, open_low: bool, open_high: bool) -> Mapping[str, Any]:
    limits: dict[str, Any] = {}
    if low is not None:
        limits["exclusiveMinimum" if open_low else "minimum"] = low
    if high is not None:
        limits["exclusiveMaximum" if open_high else "maximum"] = high
    return limits


def _range_text(low: float | None, high: float | None, open_ends: bool) -> str:
    if low is not None and high is not None:
        return f" between {low:g} and {high:g}" + (", the ends excluded" if open_ends else "")
    if low is not None:
        return f" {'>' if open_ends else '>='} {low:g}"
    return f" <= {high:g}" if high is not None else ""


def _within(value: float, low: float | None, high: float | None, open_ends: bool) -> bool:
    if open_ends:
        return (low is None or value > low) and (high is None or value < high)
    return (low is None or value >= low) and (high is None or value <= high)


def integer(low: int | None = None, high: int | None = None, *, lax: bool = False) -> Type:
    """A whole number; 5e8 counts as one. `lax` also takes "500", as pydantic does."""

    def read(value: Any) -> int:
        if lax and isinstance(value, str):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError
        if int(value) != value or not _within(value, low, high, False):
            raise ValueError
        return int(value)

    schema = {"type": "integer", **_limits(low, high, False, False)}
    text = [{"type": "string", "pattern": r"^\s*[-+]?[0-9]+(_[0-9]+)*\s*$"}] if lax else []
    return Type("a whole number" + _range_text(low, high, False), read, _any_of(schema, *text), is_number=True)


def number(
    low: float | None = None,
    high: float | None = None,
    *,
    open_ends: bool = False,
    open_low: bool = False,
    lax: bool = False,
) -> Type:
    """A finite number from `low` to `high`, both ends included unless `open_ends`; `open_low` excludes `low` alone.

    `lax` also takes "1e-5", as pydantic does.
    """

    def read(value: Any) -> float:
        if lax and isinstance(value, str):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError
        if not _within(value, low, high, open_ends) or (open_low and value == low):
            raise ValueError
        return value

    excluded = f", {low:g} excluded" if open_low else ""
    schema = {"type": "number", **_limits(low, high, open_low or open_ends, open_ends)}
    text = [{"type": "string", "pattern": _NUMBER}] if lax else []
    expected = "a number" + _range_text(low, high, open_ends) + excluded
    return Type(expected, read, _any_of(schema, *text), is_number=True)


def choice(*names: str, fold_case: bool = False) -> Type:
    """One of `names`; with `fold_case`, in any case, and kept as it was written."""

    def read(value: Any) -> str:
        if isinstance(value, str) and (value in names or (fold_case and value.lower() in map(str.lower, names))):
            return value
        raise ValueError

    schema = _any_of({"enum": list(names)}, *([_text_of(*names)] if fold_case else []))
    return Type("one of " + ", ".join(f'"{name}"' for name in names), read, schema)


def _read_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError


def _read_block(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    raise ValueError


def list_of(item: Type, length: int | None = None) -> Type:
    def read(value: Any) -> list[Any]:
        if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
            raise ValueError
        return [item.read(element) for element in value]

    count = "" if length is None else f"{length} x "
    schema = {"type": "array", "items": item.schema}
    lengths = {} if length is None else {"minItems": length, "maxItems": length}
    return Type(f"a list of {count}({item.expected})", read, schema | lengths)


def either(*types: Type) -> Type:
    def read(value: Any) -> Any:
        for candidate in types:
            try:
                return candidate.read(value)
            except ValueError:
                continue
        raise ValueError

    schema = _any_of(*(candidate.schema for candidate in types))
    return Type(", or ".join(candidate.expected for candidate in types), read, schema)


def _read_null(value: Any) -> None:
    if value is not None:
        raise ValueError


def _read_infinity(value: Any) -> None:
    # accelerate writes steps_per_print: inf; "never" is null, which stays valid JSON when we write it out again.
    if value != math.inf and value not in ("inf", "Infinity"):
        raise ValueError


BOOL = _boolean(lax=False)
LAX_BOOL = _boolean(lax=True)
TEXT = Type("a string", _read_text, {"type": "string"})
BLOCK = Type("an object", _read_block, {"type": "object"})
NULL = Type("null", _read_null, {"type": "null"})
NEVER = Type("Infinity", _read_infinity, {"enum": ["inf", "Infinity"]})
ANYTHING = Type("anything", lambda value: value, {})


def or_null(kind: Type) -> Type:
    return either(kind, NULL)
