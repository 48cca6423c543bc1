"""The rate of matrix products, which a step's share of it is measured against."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dist_trainer.benchmark.worth import gemm
from dist_trainer.errors import UserError
from dist_trainer.train import matmul


def test_the_rate_is_that_of_large_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "SIZE", 64)
    monkeypatch.setattr(gemm, "_TRY_S", 0.01)
    assert 1e6 < gemm.flops_per_s("fp32", 1, 0) < 1e15


def test_tf32_and_bf32_are_measured_where_the_hardware_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "SIZE", 64)
    monkeypatch.setattr(gemm, "_TRY_S", 0.01)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(matmul, "fast_here", lambda kind: "bf32")
    in_force: list[str] = []
    monkeypatch.setattr(matmul, "set_in_torch", in_force.append)
    assert gemm.flops_per_s("bf32", 1, 0) > 0
    assert gemm.flops_per_s("fp32", 1, 0) > 0
    assert in_force == ["bf32", "fp32"]
    with pytest.raises(UserError, match="does not multiply"):
        gemm.flops_per_s("tf32", 1, 0)


def test_no_process_runs_on_into_the_next_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = tmp_path / "late"
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\n[ "$5" = 0 ] || {{ sleep 0.5; touch {late}; }}\necho none\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert gemm.machine_flops_per_s("fp32", num_ranks=2, num_threads=1) is None
    assert late.exists()


def test_where_nothing_is_multiplied_in_a_dtype_there_is_no_rate() -> None:
    assert gemm.machine_flops_per_s("fp4", num_ranks=1, num_threads=1) is None
