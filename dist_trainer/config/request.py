"""What a command line asks to train. Imports little, so that a launcher can be started before the files are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DEFAULT_CONFIG = "tiny"
Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class Switches:
    """The command line's switches for single optimisations; None: not given."""

    micro_batch: int | None = None
    accumulation: int | None = None
    precision: Precision | None = None
    checkpointing: bool | None = None
    fused: bool | None = None
    compile: bool | None = None
    learning_rate: float | None = None


@dataclass(frozen=True)
class Request:
    """What was asked for: a run file, a DeepSpeed file, and the overrides of both. `phase` counts from 1."""

    config: str = DEFAULT_CONFIG
    ds: str | None = None
    no_optimize: bool = False
    switches: Switches = field(default_factory=Switches)
    settings: tuple[str, ...] = ()
    seed: int | None = None
    phase: int | None = None
