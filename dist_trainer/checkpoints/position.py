"""How far a run has come: what a resumed run starts from, even if its batch, phases or data are different then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dist_trainer.config.progress import Progress
from dist_trainer.data.sampler import DataPlace, Order

if TYPE_CHECKING:
    from dist_trainer.data.tokens import TokenFile


@dataclass(frozen=True)
class Position:
    """`step`: optimizer steps so far. `phases`: phase name -> its steps and tokens so far.

    `places`: `order_name` -> how far that data was read. Phases and places count tokens, so that they hold for another
    global batch too.
    """

    step: int = 0
    phases: Mapping[str, Progress] = field(default_factory=dict)
    places: Mapping[str, DataPlace] = field(default_factory=dict)

    def progress(self, phase: str) -> Progress:
        return self.phases.get(phase, Progress())

    def after_step(self, phase: str, *, num_tokens: int, order: str, place: DataPlace) -> Position:
        """The position one step later, which took `num_tokens` and read the data of `order` up to `place`."""
        before = self.progress(phase)
        now = Progress(before.steps + 1, before.tokens + num_tokens)
        return Position(self.step + 1, {**self.phases, phase: now}, {**self.places, order: place})


def order_name(tokens: TokenFile, order: Order) -> str:
    """A name that is equal for the same tokens at any path, and for all sequence lengths that share one order."""
    return f"{tokens.fingerprint}/{order.block_tokens}"
