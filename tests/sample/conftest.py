from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from random_gpt import random_gpt

from dist_trainer.checkpoints.index import DataFacts
from dist_trainer.config.run import ModelConfig
from dist_trainer.data.info import DatasetInfo
from dist_trainer.data.prepare import prepare
from dist_trainer.model.gpt import GPT

CONFIG = ModelConfig(num_layers=2, hidden_size=32, num_heads=4, vocab_size=300, context_length=16, dropout=0.1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose more by waiting for threads than these save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained() -> GPT:
    """A model of 300 tokens. Only to be read."""
    return random_gpt(CONFIG, std=0.3)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetInfo]:
    """The prepared folder of some text, whose tokenizer has at most 300 tokens. Only to be read."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text("ünder the gradient, the loss of a rank and of a step\n" * 400, encoding="utf-8")
    return folder / "prepared", prepare(
        [folder / "text.txt"], folder / "prepared", tokenizer=None, vocab_size=300, progress=False
    )


@pytest.fixture(scope="session")
def data(dataset: tuple[Path, DatasetInfo]) -> dict[str, DataFacts]:
    folder, info = dataset
    return {"all": DataFacts(str(folder / "train.bin"), info.train.num_tokens, "f00", info.tokenizer_sha256)}
