from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.memory.planner.scaling import ScaledTraces, is_scalable, peak_bytes, probe_of, scaled
from dist_trainer.memory.trace import kept
from dist_trainer.memory.trace.record import Trace, TraceSpec
from dist_trainer.memory.trace.tracer import trace

TINY = TraceSpec(
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    vocab_size=2048,
    context_length=64,
    dropout=0.1,
    loss="full",
    micro_batch=1,
    sequence_length=48,
    dtype="bf16",
    autocast=None,
    checkpointing=False,
    num_checkpoints=None,
    cpu_checkpointing=False,
    cuda=True,
)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("efficient", [False, True])
def test_a_scaled_trace_is_the_trace(dtype: str, checkpointing: bool, efficient: bool) -> None:
    spec = replace(TINY, dtype=dtype, checkpointing=checkpointing, efficient_linear=efficient)  # type: ignore[arg-type]
    probe = trace(probe_of(spec))
    for size in (1, 2, 3, 8):
        assert scaled(probe, spec, size) == trace(replace(spec, micro_batch=size))


def test_what_waits_on_the_host_scales_too() -> None:
    spec = replace(TINY, checkpointing=True, cpu_checkpointing=True)
    assert scaled(trace(probe_of(spec)), spec, 3) == trace(replace(spec, micro_batch=3))


def test_the_probe_divides_no_shape() -> None:
    assert probe_of(TINY).micro_batch == 13
    assert probe_of(replace(TINY, hidden_size=13 * 17 * 4)).micro_batch == 19
    # However many primes divide them.
    shapes = {"hidden_size": 13 * 17 * 19, "vocab_size": 23 * 29 * 31, "context_length": 37 * 41}
    assert probe_of(replace(TINY, **shapes)).micro_batch == 43


def test_a_chunked_loss_with_whole_chunks_has_the_same_peaks() -> None:
    spec = replace(TINY, loss="chunked", dtype="fp32", vocab_size=2**18, num_layers=1)
    probe = trace(probe_of(spec))
    for size in (1, 4):
        wanted = replace(spec, micro_batch=size)
        assert is_scalable(wanted)
        assert peak_bytes(scaled(probe, spec, size)) == pytest.approx(peak_bytes(trace(wanted)), rel=1e-4)


def test_a_chunked_loss_without_whole_chunks_is_traced_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = replace(TINY, loss="chunked", dtype="fp32")
    assert not is_scalable(spec)
    assert ScaledTraces().get(spec) == trace(spec)


@pytest.mark.parametrize("loss", ["fused", "chunked"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_in_16_bit_the_chunked_loss_scales_as_the_fused_one(loss: Any, dtype: Any) -> None:
    # 48 tokens a sequence, at 4 rows a part, or 64 on CUDA.
    spec = replace(TINY, loss=loss, dtype=dtype, vocab_size=2**18, num_layers=1, cuda=False, pad_vocab=True)
    probe = trace(probe_of(spec))
    for size in (1, 4):
        wanted = replace(spec, micro_batch=size)
        assert is_scalable(wanted)
        assert peak_bytes(scaled(probe, spec, size)) == pytest.approx(peak_bytes(trace(wanted)), rel=1e-4)
    if dtype == "bf16" or loss == "fused":
        assert not is_scalable(replace(spec, cuda=True, micro_batch=2))
        assert is_scalable(replace(spec, cuda=True, micro_batch=3))


def test_a_shape_is_traced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []
    real = kept.get

    def get(spec: TraceSpec) -> Trace:
        asked.append(spec.micro_batch)
        return real(spec)

    monkeypatch.setattr(kept, "get", get)
    known = ScaledTraces()
    for size in (1, 2, 2, 4):
        known.get(replace(TINY, micro_batch=size))
    assert asked == [13]
