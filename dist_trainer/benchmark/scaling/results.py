"""A sweep's results: results.json, whose schema docs/benchmark.md documents, and results.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.benchmark.scaling.points import Point
from dist_trainer.benchmark.worth.results import csv_of, json_text, write_both
from dist_trainer.typed_json import Count, Seconds

# Rises with every change that would mislead a reader of the previous version; a new key does not.
SCHEMA_VERSION = 1
KIND = "scaling"


@dataclass(frozen=True)
class Environment:
    """What was measured, and where. `hardware` in words; `num_cores` and `num_gpus` are those that ranks may use."""

    model_size: str
    deepspeed: str
    sequence_length: Count
    num_steps: Count
    hardware: str
    num_cores: Count
    num_gpus: Count
    started_s: Seconds
    revision: str | None
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Results:
    schema_version: Count
    kind: str
    environment: Environment
    points: Sequence[Point]


def write_results(results: Results, folder: Path) -> tuple[Path, Path]:
    """Both files, each whole or not at all. Raises OSError."""
    return write_both(json_text(results), csv_of(results.points, estimates=("speed_up",)), folder)
