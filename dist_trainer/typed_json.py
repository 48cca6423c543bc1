"""JSON of our own making, read back as the typed value it was, or refused: files may be damaged, or of another version.

Numbers come back as the kind of number they are, and none is larger than 64 bits hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from annotated_types import Ge, Le

if TYPE_CHECKING:
    from pydantic_core import SchemaValidator

T = TypeVar("T")

# A number of things, or of bytes.
Count = Annotated[int, Ge(0), Le(2**63 - 1)]
Finite = Annotated[float, Ge(-1e300), Le(1e300)]
# Seconds of a length or since the epoch; up to the year 9999, the last that can be shown.
Seconds = Annotated[float, Ge(0), Le(253_000_000_000)]


@dataclass(frozen=True)
class ReadAs:
    """In an Annotated type: read as of this other one, which says more."""

    kind: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return handler.generate_schema(self.kind)


class DamagedError(ValueError):
    """What was read is not what was to be read. `key` is where in it, as far as it could be read at all."""

    def __init__(self, problem: str, key: str | None = None) -> None:
        super().__init__(f"{key}: {problem}" if key else problem)
        self.problem = problem
        self.key = key


def validator(kind: Any) -> SchemaValidator:
    """`validate_json(data, strict=True)` of this one is as fast as reading JSON alone. It raises ValueError."""
    return _made(kind)


@cache
def _made(kind: Any) -> SchemaValidator:
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validator  # type: ignore[return-value]


def parse(data: bytes, kind: type[T]) -> T:
    """Fields that `kind` does not know are ignored. Raises DamagedError."""
    from pydantic import ValidationError

    try:
        value: T = validator(kind).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DamagedError(first["msg"], key or None) from None
    return value


def read(path: Path, kind: type[T]) -> T:
    """As `parse`; raises OSError too."""
    return parse(path.read_bytes(), kind)
