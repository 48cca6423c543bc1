"""The data path alone: every way to read is tried, and shown beside the plain read."""

from __future__ import annotations

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
        (workers, micro, warm) for workers, micro in ((None, 0), (0, 2), (1, 2)) for warm in (True, False)
    }
    assert all(rate.tokens_per_s > 0 for rate in rates)
    assert len(said) == 3


def test_the_best_micro_batch_stands_beside_the_plain_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "NUM_WORKERS", (0,))
    rates = [
        *(Rate(None, 0, warm, 100e6) for warm in (True, False)),
        *(Rate(0, micro, warm, micro * 10e6) for micro in (1, 4) for warm in (True, False)),
    ]
    assert table(rates) == [
        "warm  plain read, from first byte to last: 100.0M tokens/s",
        "      0 workers: 40.0M tokens/s at micro batch 4, 40% of the plain read",
        "cold  plain read, from first byte to last: 100.0M tokens/s",
        "      0 workers: 40.0M tokens/s at micro batch 4, 40% of the plain read",
    ]
