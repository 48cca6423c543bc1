"""What a value in a DeepSpeed JSON may be: types that say what they expect and return the value in its plain form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# What pydantic takes for a boolean; DeepSpeed's pydantic blocks accept these, its plain reads do not.
_WORDS = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "off", "0"), False),
}


@dataclass(frozen=True)
class Type:
    """`expected` completes 'expected: ...'; `read` returns the plain value (5e8 -> 500000000) or raises ValueError."""

    expected: str
    read: Callable[[Any], Any]
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

    return Type("true or false", read)


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

    return Type("a whole number" + _range_text(low, high, False), read, is_number=True)


def number(
    low: float | None = None,
    high: float | None = None,
    *,
    open_ends: bool = False,
    open_low: bool = False,
    lax: bool = False,
) -> Type:
    def read(value: Any) -> float:
        if lax and isinstance(value, str):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError
        if not _within(value, low, high, open_ends) or (open_low and value == low):
            raise ValueError
        return value

    excluded = f", {low:g} excluded" if open_low else ""
    return Type("a number" + _range_text(low, high, open_ends) + excluded, read, is_number=True)


def choice(*names: str, fold_case: bool = False) -> Type:
    """One of `names`; with `fold_case`, in any case, and kept as it was written."""

    def read(value: Any) -> str:
        if isinstance(value, str) and (value in names or (fold_case and value.lower() in map(str.lower, names))):
            return value
        raise ValueError

    return Type("one of " + ", ".join(f'"{name}"' for name in names), read)


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
    return Type(f"a list of {count}({item.expected})", read)


def either(*types: Type) -> Type:
    def read(value: Any) -> Any:
        for candidate in types:
            try:
                return candidate.read(value)
            except ValueError:
                continue
        raise ValueError

    return Type(", or ".join(candidate.expected for candidate in types), read)


def _read_null(value: Any) -> None:
    if value is not None:
        raise ValueError


def _read_infinity(value: Any) -> None:
    # accelerate writes steps_per_print: inf; "never" is null, which stays valid JSON when we write it out again.
    if value != math.inf and value not in ("inf", "Infinity"):
        raise ValueError


BOOL = _boolean(lax=False)
LAX_BOOL = _boolean(lax=True)
TEXT = Type("a text", _read_text)
BLOCK = Type("an object", _read_block)
NULL = Type("null", _read_null)
NEVER = Type("Infinity", _read_infinity)
ANYTHING = Type("anything", lambda value: value)


def or_null(kind: Type) -> Type:
    return either(kind, NULL)
