"""What a command line asks to train. Imports little, so that a launcher can be on its way before the files are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DEFAULT_CONFIG = "tiny"
Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class Switches:
    """What the command line said of single optimisations; None is nothing."""

    micro_batch: int | None = None
    accumulation: int | None = None
    precision: Precision | None = None
    checkpointing: bool | None = None
    fused: bool | None = None
    compile: bool | None = None
    learning_rate: float | None = None


@dataclass(frozen=True)
class Request:
    """What was asked: a run file, a DeepSpeed file, and what overrides both. `phase` counts from 1."""

    config: str = DEFAULT_CONFIG
    ds: str | None = None
    no_optimize: bool = False
    switches: Switches = field(default_factory=Switches)
    settings: tuple[str, ...] = ()
    seed: int | None = None
    phase: int | None = None
