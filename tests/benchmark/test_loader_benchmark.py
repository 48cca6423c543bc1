"""The data path alone: every way to read is tried, and shown beside the plain read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dist_trainer.benchmark import loader
from dist_trainer.benchmark.loader import Rate, measure, table
from dist_trainer.data.tokens import open_tokens


def test_every_way_is_measured_warm_and_cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "NUM_WORKERS", (0, 1))
    monkeypatch.setattr(loader, "MICRO_BATCHES", (2,))
    monkeypatch.setattr(loader, "_MEASURE_S", 0.02)
    np.arange(20_000, dtype="<u2").tofile(tmp_path / "train.bin")
    tokens = open_tokens(tmp_path / "train.bin", "train", 65_536)
    said: list[str] = []
    rates = measure(tokens, sequence_length=64, say=said.append)
    assert {(rate.num_workers, rate.micro_batch, rate.is_warm) for rate in rates} == {
        (workers, micro, warm) for workers, micro in ((None, 0), (None, 2), (0, 2), (1, 2)) for warm in (True, False)
    }
    assert all(rate.tokens_per_s > 0 for rate in rates)
    assert len(said) == 3


@pytest.mark.parametrize(("num_workers", "micro_batch"), [(None, 0), (None, 2), (0, 2), (1, 2)])
@pytest.mark.parametrize("is_warm", [True, False])
def test_a_cold_file_is_dropped_from_the_cache_before_every_pass_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int | None, micro_batch: int, is_warm: bool
) -> None:
    """Four passes over all 312 windows of 64 tokens, of which the first does not count; the clock goes on by itself."""
    np.arange(20_000, dtype="<u2").tofile(tmp_path / "train.bin")
    tokens = open_tokens(tmp_path / "train.bin", "train", 65_536)
    happened: list[str] = []
    timed = loader._timed

    def one_pass(sizes: Iterator[int]) -> tuple[int, float]:
        happened.append("pass")
        return timed(sizes)[0], 1.0

    monkeypatch.setattr(loader, "_timed", one_pass)
    monkeypatch.setattr(loader, "_MEASURE_S", 3)
    monkeypatch.setattr(loader, "drop_from_cache", lambda path: happened.append(f"drop {path}"))
    rate = loader._tokens_per_s(tokens, 64, num_workers, micro_batch, is_warm)
    assert rate == (312 * 64 if micro_batch else 20_000)
    drop = [] if is_warm else [f"drop {tokens.path}"]
    assert happened == ["pass", *(3 * [*drop, "pass"])]


def test_a_pass_over_a_large_file_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_MEASURE_S", 0)
    assert loader._timed(itertools.repeat(7))[0] == 7


def test_the_best_micro_batch_stands_beside_the_plain_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "NUM_WORKERS", (0,))
    rates = [
        *(Rate(None, 0, warm, 100e6) for warm in (True, False)),
        *(Rate(None, micro, warm, micro * 20e6) for micro in (1, 4) for warm in (True, False)),
        *(Rate(0, micro, warm, micro * 10e6) for micro in (1, 4) for warm in (True, False)),
    ]
    assert table(rates) == [
        "warm  plain read, from first byte to last: 100.0M tokens/s",
        "      made into micro batches: 80.0M tokens/s at micro batch 4, 80% of the plain read",
        "      0 workers: 40.0M tokens/s at micro batch 4, 40% of the plain read",
        "cold  plain read, from first byte to last: 100.0M tokens/s",
        "      made into micro batches: 80.0M tokens/s at micro batch 4, 80% of the plain read",
        "      0 workers: 40.0M tokens/s at micro batch 4, 40% of the plain read",
    ]
