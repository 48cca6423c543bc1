"""What one rank of the trial makes of its own times and those of the others."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from dist_trainer.doctor.bandwidth import RankSpec, TrialRank


def test_an_all_reduce_takes_as_long_as_on_the_slowest_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def all_reduce(tensor: torch.Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
        """With another rank that needs a minute."""
        if op == dist.ReduceOp.MAX:
            tensor.clamp_(min=60.0)
        elif op == dist.ReduceOp.MIN:
            tensor.clamp_(max=60.0)
        else:
            sizes.append(tensor.numel() * tensor.element_size())

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    trial = TrialRank(RankSpec(0, 0, ((0, 1),), "127.0.0.1", 1, "cpu", 9))
    assert trial.all_reduce() == (sizes[-1], 60.0)
    # One to warm up; a minute leaves no time for more.
    assert len(sizes) == 2
