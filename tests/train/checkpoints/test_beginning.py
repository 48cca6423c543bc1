"""A new run has the weights that it begins from, to the bit, at every ZeRO stage, and nothing else of them."""

from __future__ import annotations

from pathlib import Path

import gpt_checkpoints
import one_rank
import pytest
import torch
from checkpoint_folders import made
from one_rank import MODEL, Trained, build

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.index import WEIGHT
from dist_trainer.checkpoints.position import Position
from dist_trainer.exchange.foreign import open_foreign
from dist_trainer.exchange.gpt2 import export
from dist_trainer.exchange.initial import Initial
from dist_trainer.exchange.reading import Reader
from dist_trainer.train.checkpoints import loading
from dist_trainer.train.checkpoints.holders import holders_of


@pytest.mark.parametrize("is_theirs", [False, True], ids=["ours", "theirs"])
@pytest.mark.parametrize(
    "trained", [Trained(), Trained(stage=2, precision="bf16"), Trained(stage=3)], ids=["0", "2", "3"]
)
def test_an_engine_begins_with_the_weights_alone(tmp_path: Path, trained: Trained, is_theirs: bool) -> None:
    gpt = gpt_checkpoints.model(**MODEL)
    folder = gpt_checkpoints.write(tmp_path / "checkpoints", gpt, gpt_checkpoints.states_of(gpt))
    found = Found(folder, index.read(folder))
    source = found
    if is_theirs:
        export(found, tmp_path / "theirs", tokenizer=None)
        source = open_foreign(tmp_path / "theirs")
    with one_rank.one_rank():
        engine = build(trained, tmp_path)
        loading.load_weights(holders_of(engine, MODEL["vocab_size"]), Initial(source, "", ()))
        assert engine.global_steps == 0
        saved = one_rank.save(engine, tmp_path / "run", Position(), made())
        engine.destroy()
    with Reader(saved, index.read(saved)) as reader:
        for name, parameter in gpt.named_parameters():
            target = torch.empty_like(parameter)
            reader.read_into(target, name, WEIGHT, 0)
            assert torch.equal(target, parameter), name
