"""JSON that we wrote, read back as the same typed value, or refused: a file may be damaged or from another version.

Integers and floats are kept apart, and no number exceeds 64 bits.
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

# A count of things or of bytes.
Count = Annotated[int, Ge(0), Le(2**63 - 1)]
Finite = Annotated[float, Ge(-1e300), Le(1e300)]
# A duration, or a time since the epoch, in seconds; up to the year 9999, the last that datetime can show.
Seconds = Annotated[float, Ge(0), Le(253_000_000_000)]


@dataclass(frozen=True)
class ReadAs:
    """In an Annotated type: validate as `kind`, which is more specific than the annotated type."""

    kind: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return handler.generate_schema(self.kind)


class DamagedError(ValueError):
    """The JSON is not a value of the wanted kind. `key`: the path to the problem, None if it could not be parsed."""

    def __init__(self, problem: str, key: str | None = None) -> None:
        super().__init__(f"{key}: {problem}" if key else problem)
        self.problem = problem
        self.key = key


def validator(kind: Any) -> SchemaValidator:
    """Its `validate_json(data, strict=True)` is as fast as parsing JSON alone. Raises ValueError."""
    return _made(kind)


@cache
def _made(kind: Any) -> SchemaValidator:
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validator  # type: ignore[return-value]


def parse(data: bytes, kind: type[T]) -> T:
    """The value of type `kind`; fields that it does not have are ignored. Raises DamagedError."""
    from pydantic import ValidationError

    try:
        value: T = validator(kind).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DamagedError(first["msg"], key or None) from None
    return value


def read(path: Path, kind: type[T]) -> T:
    """As `parse`, from a file; also raises OSError."""
    return parse(path.read_bytes(), kind)
