from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from common import Windows
from environment import REQUIREMENTS
from results import LOSS_TOLERANCE, other_losses, rows, table
from running import deepspeed_config, run_file
from settings import PEERS, SETTINGS
from torch.utils.data import DataLoader

from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.config.adapt import DeviceFacts
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve
from dist_trainer.data.loader import build_loader
from dist_trainer.data.sampler import BatchPlan, Order
from dist_trainer.data.tokens import open_tokens

NUM_STEPS, NUM_RANKS, MICRO_BATCH, ACCUMULATION = 3, 2, 2, 2
SETTING = SETTINGS["tiny-fp32"]


def test_a_peer_reads_our_batches(tmp_path: Path) -> None:
    np.random.default_rng(0).integers(0, 300, 5000).astype(np.uint16).tofile(tmp_path / "train.bin")
    tokens = open_tokens(tmp_path, "train", 300)
    order = Order(tokens.num_tokens, 16, 32, seed=5)
    plan = BatchPlan(order, MICRO_BATCH, ACCUMULATION, NUM_RANKS)
    windows = Windows(tokens, order, NUM_STEPS * plan.global_batch)
    # Ranks take micro batches in turn, as Accelerate's data loader does.
    peers = list(DataLoader(windows, batch_size=MICRO_BATCH))
    for rank in range(NUM_RANKS):
        ours = build_loader(
            tokens, plan, rank=rank, num_steps=NUM_STEPS, num_workers=0, prefetch_factor=2, pin_memory=False
        )
        for batch, of_peer in zip(ours, peers[rank::NUM_RANKS], strict=True):
            assert torch.equal(batch.inputs, of_peer["tokens"])
            assert torch.equal(batch.targets, of_peer["targets"])


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_resolves_to_the_same_tokens_a_step(name: str, tmp_path: Path) -> None:
    setting = SETTINGS[name]
    assert set(setting.peers) <= PEERS.keys()
    run, ds = tmp_path / "run.yaml", tmp_path / "ds.json"
    run.write_text(json.dumps(run_file(setting, name, 4)))
    for ours in setting.ours.values():
        ds.write_text(json.dumps(deepspeed_config(ours, setting)))
        device = DeviceFacts(kind="cpu", supports_bf16=True, supports_fp16=True, has_compiler=True, name="CPU")
        num_ranks = ours.num_ranks or setting.num_ranks
        resolved = resolve(Request(config=str(run), ds=str(ds)), world_size=num_ranks, device=device)
        assert resolved.phases[0].tokens_per_step == setting.num_tokens


def measured(cell: str, round_: int, step_s: float, *, loss: float = 9.0, peak_bytes: int = 10**9) -> Measurement:
    return Measurement(
        cell,
        round_,
        place=0,
        time_s=0.0,
        num_tokens=SETTING.num_tokens,
        step_s=(step_s,) * 3,
        loss=loss,
        peak_bytes=peak_bytes,
    )


def test_the_table_says_how_many_times_as_fast_ours_is() -> None:
    measurements = [
        *(measured("ours", number, 1.0) for number in range(2)),
        *(measured("plain", number, 2.0 + number, peak_bytes=(2 + number) * 10**9) for number in range(2)),
        Measurement("fabric", 0, 0, 0.0, failure="it ended with status 1"),
    ]
    found = rows(SETTING, measurements, flops_per_s=None)
    text = table("tiny-fp32", SETTING, found, num_steps=8)
    assert "| ours | 2,048 |  | 1.00 GB |  | 9.0000 | 2 |" in text
    assert "| plain | 853 | 2.449 (rounds: 2.000 to 3.000) | 3.00 GB |  | 9.0000 | 2 |" in text
    assert "| fabric | failed | | | | | 0 |" in text
    assert "hf-trainer" not in text


def test_six_rounds_give_an_interval() -> None:
    measurements = [
        measured(cell, number, step_s + number / 100)
        for number in range(6)
        for cell, step_s in (("ours", 1.0), ("plain", 1.5))
    ]
    plain = rows(SETTING, measurements, flops_per_s=1e12)[1]
    assert plain.is_interval
    assert plain.low is not None and plain.high is not None and 1 < plain.low < 1.5 < plain.high + 0.1
    assert plain.mfu is not None and 0 < plain.mfu < 1


def test_losses_that_rounding_does_not_explain_are_named() -> None:
    near, far = 9.0 * (1 + LOSS_TOLERANCE / 2), 9.0 * (1 + LOSS_TOLERANCE * 2)
    measurements = [
        measured("ours", 0, 1.0),
        measured("plain", 0, 1.0, loss=near),
        measured("fabric", 0, 1.0, loss=far),
    ]
    assert [line.split(":")[0] for line in other_losses(rows(SETTING, measurements, None))] == ["fabric"]


def test_requirements_are_pinned_and_leave_torch_alone() -> None:
    names = [line.split("==") for line in REQUIREMENTS.read_text(encoding="utf-8").split()]
    assert all(len(pair) == 2 for pair in names)
    assert not {"torch", "deepspeed"} & {name for name, _ in names}
