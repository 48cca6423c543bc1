"""How far a run has come in a phase, as far as the rest of that phase depends on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Optimizer steps taken in a phase, and tokens of all ranks that they read."""

    steps: int = 0
    tokens: int = 0
