"""What one micro batch allocates, in order: the model's real code, run once under fake tensors, as plain data.

A trace knows nothing of ZeRO, devices or launchers. `tracer.py` makes one (with torch); this module keeps it, so that a
shape seen before needs no torch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from dist_trainer.cache import cache_dir, code_digest, write_whole

# An event is (kind, first, second, third).
ALLOC = 0  # storage, bytes, part
FREE = 1  # storage
GRADIENT = 2  # parameter, storage: the parameter's gradient is complete and lies in this storage
FORWARD_ENTER = 3  # module
FORWARD_EXIT = 4  # module
BACKWARD_ENTER = 5  # module
BACKWARD_EXIT = 6  # module
BACKWARD = 7  # the backward pass begins

ACTIVATIONS = 0
LOSS = 1

Event = tuple[int, int, int, int]


@dataclass(frozen=True)
class TraceSpec:
    """All that a trace depends on. `cuda` traces what CUDA's kernels keep where CPU's differ (masks of dropout)."""

    num_layers: int
    hidden_size: int
    num_heads: int
    vocab_size: int
    context_length: int
    dropout: float
    loss: Literal["full", "chunked"]
    micro_batch: int
    sequence_length: int
    dtype: Literal["fp32", "bf16", "fp16"]
    autocast: Literal["bf16", "fp16"] | None
    checkpointing: bool
    num_checkpoints: int | None
    cpu_checkpointing: bool
    cuda: bool


@dataclass(frozen=True)
class TracedParameter:
    """`group`: which of the optimizer's groups it is in (`GPT.parameter_groups`)."""

    name: str
    numel: int
    group: int


@dataclass(frozen=True)
class Trace:
    """`modules`: the parameters that each module owns, by number. `saved_on_host_bytes`: kept by CPU checkpointing."""

    parameters: tuple[TracedParameter, ...]
    modules: tuple[tuple[int, ...], ...]
    events: tuple[Event, ...]
    saved_on_host_bytes: int = 0


def load(spec: TraceSpec) -> Trace | None:
    """The trace kept for `spec`, or None."""
    try:
        text = _path(spec).read_text(encoding="utf-8")
        values = json.loads(text)
        return Trace(
            parameters=tuple(TracedParameter(*values_of) for values_of in values["parameters"]),
            modules=tuple(tuple(owned) for owned in values["modules"]),
            events=tuple(map(tuple, values["events"])),
            saved_on_host_bytes=values["saved_on_host_bytes"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(spec: TraceSpec, trace: Trace) -> None:
    """Keeps the trace; a folder that cannot be written is no error, it only costs the next plan its time."""
    values = {
        "parameters": [(p.name, p.numel, p.group) for p in trace.parameters],
        "modules": trace.modules,
        "events": trace.events,
        "saved_on_host_bytes": trace.saved_on_host_bytes,
    }
    with suppress(OSError):
        write_whole(_path(spec), json.dumps(values, separators=(",", ":")))


def get(spec: TraceSpec) -> Trace:
    """The kept trace, or a new one, which is then kept. Imports torch only for a new one."""
    kept = load(spec)
    if kept is not None:
        return kept
    from dist_trainer.memory.tracer import trace

    made = trace(spec)
    save(spec, made)
    return made


def _path(spec: TraceSpec) -> Path:
    key = hashlib.sha256(json.dumps([asdict(spec), *_versions()]).encode()).hexdigest()[:24]
    return cache_dir(os.environ) / "traces" / f"{key}.json"


@cache
def _versions() -> tuple[str, ...]:
    """What makes kept traces stale: another torch, or other code of the model or of the tracer."""
    package = Path(__file__).parents[1]
    sources = [*sorted((package / "model").glob("*.py")), package / "memory" / "tracer.py"]
    return importlib.metadata.version("torch"), code_digest(sources)
