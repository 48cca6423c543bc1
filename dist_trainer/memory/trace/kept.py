"""Traces kept on disk by what they depend on, so that a shape seen before needs no torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from dist_trainer import cache
from dist_trainer.cache import cache_dir, code_digest
from dist_trainer.memory.trace.record import Trace, TracedParameter, TraceSpec


def load(spec: TraceSpec) -> Trace | None:
    """The trace kept for `spec`, or None."""
    data = cache.kept(_path(spec))
    if data is None:
        return None
    values = json.loads(data)
    return Trace(
        parameters=tuple(TracedParameter(*values_of) for values_of in values["parameters"]),
        modules=tuple(tuple(owned) for owned in values["modules"]),
        events=tuple(map(tuple, values["events"])),
        saved_on_host_bytes=values["saved_on_host_bytes"],
        num_saved_on_host=values["num_saved_on_host"],
        linears=tuple((module, weight) for module, weight in values["linears"]),
    )


def save(spec: TraceSpec, trace: Trace) -> None:
    """Keeps the trace; a folder that cannot be written is no error, it only costs the next plan its time."""
    values = {
        "parameters": [(p.name, p.numel, p.group) for p in trace.parameters],
        "modules": trace.modules,
        "events": trace.events,
        "saved_on_host_bytes": trace.saved_on_host_bytes,
        "num_saved_on_host": trace.num_saved_on_host,
        "linears": trace.linears,
    }
    with suppress(OSError):
        cache.keep(_path(spec), json.dumps(values, separators=(",", ":")))


def get(spec: TraceSpec) -> Trace:
    """The kept trace, or a new one, which is then kept. Imports torch only for a new one."""
    kept = load(spec)
    if kept is not None:
        return kept
    from dist_trainer.memory.trace.tracer import trace

    made = trace(spec)
    save(spec, made)
    return made


def _path(spec: TraceSpec) -> Path:
    key = hashlib.sha256(json.dumps([asdict(spec), *_versions()]).encode()).hexdigest()[:24]
    return cache_dir(os.environ) / "traces" / f"{key}.json"


@lru_cache
def _versions() -> tuple[str, ...]:
    """What makes kept traces stale: another torch, or other code of the model or of the tracer."""
    package = Path(__file__).parents[2]
    own = [Path(__file__).with_name(name) for name in ("tracer.py", "kept.py")]
    sources = [*sorted((package / "model").glob("*.py")), *own]
    return importlib.metadata.version("torch"), code_digest(sources)
