"""Reads a DeepSpeed file: JSON, or the Hjson that DeepSpeed takes as well; no key twice, an object at the top."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dist_trainer import strict_json
from dist_trainer.config.deepspeed.mistakes import DeepSpeedFileError, Mistake
from dist_trainer.errors import UserError


class _Object(dict[str, Any]):
    """An object of the file that remembers which of its keys were said more than once."""

    twice: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    result = _Object(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        result.twice = tuple(name for name in result if names.count(name) > 1)
    return result


def _said_twice(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, _Object):
        yield from (path + name for name in value.twice)
        for name, inner in value.items():
            yield from _said_twice(inner, f"{path}{name}.")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _said_twice(inner, f"{path}{index}.")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _syntax_error(error: json.JSONDecodeError, as_json: json.JSONDecodeError, source: str) -> UserError:
    hint = None
    if error.lineno != as_json.lineno:
        hint = (
            f"read as plain JSON it is wrong at line {as_json.lineno}, column {as_json.colno}; text without quotes "
            "goes on to the end of its line"
        )
    return UserError(
        f"not valid JSON, nor Hjson, which DeepSpeed reads: {error.msg}",
        where=f"{source}: line {error.lineno}, column {error.colno}",
        hint=hint,
    )


def _loads(text: str, source: str) -> Any:
    try:
        return strict_json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        as_json = error
    # Hjson would read what json takes for a number (NaN, Infinity) as text: it is asked second.
    try:
        return strict_json.loads_hjson(text, object_pairs_hook=_object)
    except strict_json.HjsonError as error:
        raise _syntax_error(error, as_json, source) from None


def parse(text: str, *, source: str) -> Any:
    """The value of `text`, which may be JSON or, as for DeepSpeed, Hjson.

    Raises UserError if it is neither, and DeepSpeedFileError for every key that is said twice.
    """
    try:
        value = _loads(text, source)
    except strict_json.TooMuchError as error:
        raise UserError(f"the JSON cannot be read: {error}", where=source) from None
    twice = list(_said_twice(value))
    if twice:
        mistakes = [Mistake(key, "a key said twice", hint="keep one of them") for key in twice]
        raise DeepSpeedFileError(mistakes, source)
    return _plain(value)


def read(path: Path) -> dict[str, Any]:
    """The object in a file. Raises UserError, which names the file, and the line and column or the key."""
    source = str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError("there is no such DeepSpeed configuration file", where=source) from None
    except OSError as error:
        raise UserError(f"the DeepSpeed configuration cannot be read: {error.strerror}", where=source) from None
    except UnicodeDecodeError:
        raise UserError("the DeepSpeed configuration is not UTF-8 text", where=source) from None
    if not text.strip():
        raise UserError("the DeepSpeed configuration is empty", where=source, expected="a JSON object")
    value = parse(text, source=source)
    if not isinstance(value, dict):
        raise UserError(
            "a DeepSpeed configuration is one JSON object",
            where=source,
            found=value,
            expected='{"train_batch_size": ..., ...}',
        )
    return value
