"""Measurements kept on disk, so that a benchmark that was stopped can continue."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from dist_trainer import cache
from dist_trainer.benchmark.measure import Measurement, Spec, measure_apart
from dist_trainer.cache import cache_dir, code_digest
from dist_trainer.config.resolve import ResolvedRun


def measured(spec: Spec, resolved: ResolvedRun) -> Measurement:
    """The kept measurement of `spec`, or else a new one."""
    return find(spec, resolved) or measure(spec, resolved)


def measure(spec: Spec, resolved: ResolvedRun) -> Measurement:
    """Measures, and keeps the result."""
    measurement = measure_apart(spec)
    cache.keep(_path(spec, resolved), json.dumps(asdict(measurement)) + "\n")
    return measurement


def find(spec: Spec, resolved: ResolvedRun) -> Measurement | None:
    """The kept measurement of `spec`, or None."""
    data = cache.kept(_path(spec, resolved))
    return None if data is None else Measurement(**json.loads(data))


def _path(spec: Spec, resolved: ResolvedRun) -> Path:
    """Named after the content that is measured, not the names of its files, and after the code that it depends on."""
    what = [
        resolved.run.model.model_dump(),
        resolved.deepspeed,
        spec.rank,
        spec.world_size,
        spec.sequence_length,
        spec.num_steps,
        *_versions(),
    ]
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]
    return cache_dir(os.environ) / "measurements" / f"{key}.json"


@lru_cache
def _versions() -> tuple[str, ...]:
    package = Path(__file__).parents[1]
    train = [package / "train" / name for name in ("blank_step.py", "engine.py", "loss_scale.py", "step.py")]
    own = [package / "benchmark" / name for name in ("measure.py", "kept.py")]
    sources = [*sorted((package / "model").glob("*.py")), *train, package / "monitor" / "allocator.py", *own]
    return importlib.metadata.version("torch"), importlib.metadata.version("deepspeed"), code_digest(sources)
