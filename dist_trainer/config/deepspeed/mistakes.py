"""What is wrong with a DeepSpeed JSON: all of it in one error, the first mistake in detail, the rest a line each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dist_trainer.errors import UserError, cut

_SHOWN_CHARACTERS = 80
_MISSING: Any = object()


class JsonText(str):
    """A value as the file has it (`true`, `null`, `"fast"`), so that no Python spelling reaches the reader."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def json_text(value: Any) -> JsonText:
    text = json.dumps(value, default=repr)
    return JsonText(text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…")


@dataclass(frozen=True)
class Mistake:
    """`key` is the dotted path; `found` is the value in the file, if a value is at fault."""

    key: str
    problem: str
    found: Any = _MISSING
    expected: str | None = None
    hint: str | None = None

    @property
    def shown(self) -> JsonText | None:
        return None if self.found is _MISSING else json_text(self.found)

    def line(self) -> str:
        parts = [self.problem]
        if self.shown is not None:
            parts.append(f"found {self.shown}")
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.hint:
            parts.append(self.hint)
        return f"{self.key}: " + "; ".join(parts)


class DeepSpeedFileError(UserError):
    """A DeepSpeed JSON cannot be taken as it is; `mistakes` holds all that is wrong with it."""

    def __init__(self, mistakes: Sequence[Mistake], source: str) -> None:
        first = mistakes[0]
        count = f" (the first of {len(mistakes)} mistakes)" if len(mistakes) > 1 else ""
        super().__init__(
            first.problem + count,
            where=source,
            key=first.key,
            found=first.shown,
            expected=first.expected,
            hint=first.hint,
        )
        self.mistakes = tuple(mistakes)

    def __str__(self) -> str:
        labels = ["  also:    ", *["           "] * len(self.mistakes)]
        return "\n".join(
            [
                super().__str__(),
                *(f"{label} {cut(mistake.line())}" for label, mistake in zip(labels, self.mistakes[1:], strict=False)),
            ]
        )
