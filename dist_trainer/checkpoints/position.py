"""How far a run has come: what a resumed run starts from, whatever its batch, its phases and its data are then."""

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
    """`step` counts optimizer steps in all, `phases` those and the tokens of each phase, by its name.

    `places` says how far each dataset was read, by `order_name`. Both count tokens rather than steps, so that they hold
    for another global batch.
    """

    step: int = 0
    phases: Mapping[str, Progress] = field(default_factory=dict)
    places: Mapping[str, DataPlace] = field(default_factory=dict)

    def progress(self, phase: str) -> Progress:
        return self.phases.get(phase, Progress())

    def after_step(self, phase: str, *, num_tokens: int, order: str, place: DataPlace) -> Position:
        """One step on: it read `num_tokens`, and the data of that order up to `place`."""
        before = self.progress(phase)
        now = Progress(before.steps + 1, before.tokens + num_tokens)
        return Position(self.step + 1, {**self.phases, phase: now}, {**self.places, order: place})


def order_name(tokens: TokenFile, order: Order) -> str:
    """The same for the same tokens wherever they lie, and for all sequence lengths that share one order of them."""
    return f"{tokens.fingerprint}/{order.block_tokens}"
