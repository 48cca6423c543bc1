"""The rate of matrix products, which a step's share of it is measured against."""

from __future__ import annotations

import pytest

from dist_trainer.benchmark.worth import gemm


def test_the_rate_is_that_of_large_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "SIZE", 64)
    monkeypatch.setattr(gemm, "_TRY_S", 0.01)
    assert 1e6 < gemm.flops_per_s("fp32", 1, 0) < 1e15


def test_where_nothing_is_multiplied_in_a_dtype_there_is_no_rate() -> None:
    assert gemm.machine_flops_per_s("fp4", num_ranks=1, num_threads=1) is None
