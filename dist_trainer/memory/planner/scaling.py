"""One trace for every micro batch: what a micro batch allocates grows in proportion to it, or does not grow at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

from dist_trainer.memory.trace import kept
from dist_trainer.memory.trace.record import ALLOC, FREE, GRADIENT, Trace, TraceSpec
from dist_trainer.model.size import CHUNK_ELEMENTS, embedding_rows, fused_rows

# Large enough that a chunked loss has whole chunks, small enough to be traced quickly.
_FEWEST_SEQUENCES = 13


def probe_of(spec: TraceSpec) -> TraceSpec:
    """The same spec at a prime micro batch that divides no shape, so that it divides only sizes that grow with it."""
    num_rows = embedding_rows(spec.vocab_size, pad_vocab=spec.pad_vocab)
    shapes = (spec.hidden_size, spec.vocab_size, num_rows, spec.context_length, spec.sequence_length, spec.num_heads)
    return replace(spec, micro_batch=next(p for p in _primes() if all(shape % p for shape in shapes)))


def _primes() -> Iterator[int]:
    return (p for p in count(_FEWEST_SEQUENCES) if all(p % divisor for divisor in range(2, math.isqrt(p) + 1)))


def scaled(probe: Trace, spec: TraceSpec, micro_batch: int) -> Trace:
    """The trace of `spec`'s model at another micro batch, from `probe`, its trace at `probe_of(spec)`.

    A size that the probe's number of tokens divides grows with the micro batch; every other stays. With a full loss
    this is the trace that torch would give. With a loss that works by parts torch's trace would have another number of
    parts, but the same peaks, because all parts but the last are of one size.
    """
    unit = probe_of(spec).micro_batch
    tokens = unit * spec.sequence_length
    events = tuple(
        (kind, first, size // unit * micro_batch, part) if kind == ALLOC and size % tokens == 0 else event
        for event in probe.events
        for kind, first, size, part in (event,)
    )
    return replace(probe, events=events, saved_on_host_bytes=probe.saved_on_host_bytes // unit * micro_batch)


def is_scalable(spec: TraceSpec) -> bool:
    """Whether `scaled` is right for `spec`: at its peak a loss by parts holds two whole parts, which both must have."""
    if spec.loss == "full":
        return True
    tokens = min(spec.micro_batch, probe_of(spec).micro_batch) * spec.sequence_length
    if spec.loss == "chunked" and spec.dtype == "fp32" and spec.autocast is None:
        return tokens * spec.vocab_size >= 2 * CHUNK_ELEMENTS
    return tokens >= 2 * fused_rows(spec.vocab_size, cuda=spec.cuda)


def peak_bytes(trace: Trace) -> int:
    """The peak of the forward and backward pass itself, with each gradient freed as soon as it is complete."""
    live: dict[int, int] = {}
    total = peak = 0
    for kind, first, second, _ in trace.events:
        if kind == ALLOC:
            live[first] = second
            total += second
            peak = max(peak, total)
        elif kind == FREE:
            total -= live.pop(first, 0)
        elif kind == GRADIENT:
            total -= live.pop(second, 0)
    return peak


class ScaledTraces:
    """Traces at any micro batch, each shape traced once."""

    def __init__(self) -> None:
        self._known: dict[TraceSpec, Trace] = {}

    def get(self, spec: TraceSpec) -> Trace:
        """The trace for `spec`, scaled where that is right. Imports torch only if no trace of the shape is kept."""
        if spec not in self._known:
            self._known[spec] = self._make(spec)
        return self._known[spec]

    def get_exact(self, spec: TraceSpec) -> Trace:
        """The trace that torch gives for `spec`: a scaled one with a full loss, else one of its own."""
        return self.get(spec) if spec.loss == "full" else kept.get(spec)

    def _make(self, spec: TraceSpec) -> Trace:
        if not is_scalable(spec):
            return kept.get(spec)
        probe_spec = probe_of(spec)
        if probe_spec not in self._known:
            self._known[probe_spec] = kept.get(probe_spec)
        return scaled(self._known[probe_spec], spec, spec.micro_batch)
