"""The weights of a model in files of another program, under this program's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dist_trainer.encoding import printable
from dist_trainer.errors import UserError, cut
from dist_trainer.exchange.gpt2_form import OUTPUT, TOKENS, Shape, Weight

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """`said`: what they are of, for people. `dtypes`: of each parameter, safetensors' name. `read`: a whole parameter
    as it is here. `fingerprint`: the same on every rank that sees the same files. `notices`: what the files do not say.
    """

    folder: Path
    said: str
    shape: Shape
    dropout: float
    dtypes: Mapping[str, str]
    read: Callable[[str], Tensor]
    fingerprint: str
    notices: tuple[str, ...] = ()

    def with_heads(self, num_heads: int) -> Weights:
        """The same, where the files do not say the number of attention heads. Raises UserError for another one."""
        known = self.shape.num_heads
        if known not in (None, num_heads) or self.shape.hidden_size % num_heads:
            raise UserError(
                "the model cannot have so many attention heads",
                where="--num-heads",
                found=num_heads,
                expected=f"{known}, as {self.folder} says" if known else f"a divisor of {self.shape.hidden_size}",
            )
        return replace(self, shape=replace(self.shape, num_heads=num_heads))


class WholeTensors:
    """Gives elements of parameters that can only be read whole: the last one read is kept."""

    def __init__(self, read: Callable[[str], Tensor]) -> None:
        self._read = read
        self._name: str | None = None
        self._last: Tensor | None = None

    def read_into(self, target: Tensor, parameter: str, state: str, start: int) -> None:
        """Fills a contiguous tensor with elements of the weight from `start` on, converted to its dtype."""
        if parameter != self._name or self._last is None:
            self._name, self._last = parameter, self._read(parameter).reshape(-1)
        target.copy_(self._last[start : start + target.numel()].view(target.shape))


def own_output(where: Path) -> UserError:
    """The output embedding of a model is another one than that of the tokens."""
    return UserError(
        "the model has an output embedding of its own, which this program's GPT has not",
        where=str(where),
        key=OUTPUT,
        found=f"not what {TOKENS} is",
        expected=f"the same as {TOKENS}, or none",
    )


def check_names(expected: Mapping[str, Weight], there: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """Raises UserError for the first parameter that is missing, of another shape, or not one of the model.

    `expected`: by the names of the file; `there`: their shapes.
    """
    for name, weight in expected.items():
        if there.get(name) not in (weight.their_shape, None):
            raise _not_this_model(where, name, f"shape {list(there[name])}", f"shape {list(weight.their_shape)}")
        if name not in there:
            raise _not_this_model(where, name, "no such parameter", f"shape {list(weight.their_shape)}")
    for name in there:
        if name not in expected:
            raise _not_this_model(where, name, f"shape {list(there[name])}", "no such parameter")


def _not_this_model(where: Path, name: str, found: str, expected: str) -> UserError:
    return UserError(
        "these are not the weights of a GPT-2",
        where=str(where),
        key=printable(cut(name)),
        found=found,
        expected=f"{expected}, in a model of this shape",
    )
