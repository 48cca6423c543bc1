"""JSON written by people: any bytes become a value that is safe to work with, or a ValueError."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100
# About as many digits as the largest float has; Python refuses to parse integers of thousands of digits.
MAX_DIGITS = 300


class TooMuchError(ValueError):
    """Valid JSON, but nested more deeply, or with a longer number, than anything needs."""


class HjsonError(json.JSONDecodeError):
    """The text is not Hjson either; `msg`, `lineno` and `colno` say what is wrong and where."""


def loads(
    text: str | bytes,
    *,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    max_depth: int | None = MAX_DEPTH,
) -> Any:
    """Raises json.JSONDecodeError if it is not JSON, and TooMuchError. `max_depth` None: no limit but Python's own."""
    try:
        value = json.loads(text, object_pairs_hook=object_pairs_hook, parse_int=_whole, parse_float=_number)
    except RecursionError:
        raise TooMuchError("nested too deeply") from None
    if max_depth is not None and _is_deeper(value, max_depth):
        raise TooMuchError(f"nested more than {max_depth} deep")
    return value


def loads_hjson(text: str, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The same, with the same limits, for Hjson: JSON with comments, trailing commas, and unquoted keys and strings.

    Raises HjsonError and TooMuchError.
    """
    import hjson  # Only where it is no JSON, for every rank imports this module.

    try:
        value = hjson.loads(text, object_pairs_hook=object_pairs_hook, parse_int=_whole, parse_float=_number)
    except hjson.HjsonDecodeError as error:
        raise HjsonError(error.msg.replace("%r", repr(text[error.pos : error.pos + 1])), text, error.pos) from None
    except IndexError:
        # hjson's own error for an unclosed comment or triple-quoted string.
        raise HjsonError("the end comes too early", text, len(text)) from None
    except RecursionError:
        raise TooMuchError("nested too deeply") from None
    if _is_deeper(value, MAX_DEPTH):
        raise TooMuchError(f"nested more than {MAX_DEPTH} deep")
    return value


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise TooMuchError(f"a number of {len(digits)} digits")
    return int(digits)


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise TooMuchError(f"a number that is too large: {text[:40]}")
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    layer = [value]
    for _ in range(depth):
        layer = [
            inner
            for one in layer
            if isinstance(one, (dict, list))
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not layer:
            return False
    return any(isinstance(one, (dict, list)) for one in layer)
