"""How much of a phase is done, as far as the rest of the phase depends on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Optimizer steps done in a phase, and the tokens that all ranks together read in them."""

    steps: int = 0
    tokens: int = 0
