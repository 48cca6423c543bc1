"""Text that is big enough to hold some out, and prepared folders of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_trainer.data.info import DatasetInfo
from dist_trainer.data.prepare import prepare

WORDS = ("the", "of", "rank", "token", "step", "gradient", "and", "loss", "to", "memory", "über", "naïve", "数", "🙂")


def write_prose(num_lines: int, seed: int) -> str:
    draw = random.Random(seed)
    return "".join(" ".join(draw.choices(WORDS, k=10)) + ".\n" for _ in range(num_lines))


@pytest.fixture(scope="session")
def prose() -> Callable[[int, int], str]:
    """prose(num_lines, seed): lines of ten words and their full stop."""
    return write_prose


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty documents in a folder and a folder in it."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "more").mkdir()
    for number in range(20):
        place = folder / "more" if number % 2 else folder
        (place / f"{number:02d}.txt").write_text(write_prose(40, number), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> tuple[Path, DatasetInfo]:
    """The prepared folder of `text_folder`. Only to be read."""
    folder = tmp_path_factory.mktemp("data") / "prepared"
    return folder, prepare([text_folder], folder, tokenizer=None, vocab_size=300, progress=False)


@pytest.fixture
def prepare_text(tmp_path: Path) -> Callable[..., DatasetInfo]:
    """prepare() into tmp_path/out with a vocabulary of 300, nothing else said."""

    def run(*inputs: Path, tokenizer: Path | None = None, vocab_size: int | None = 300) -> DatasetInfo:
        return prepare(list(inputs), tmp_path / "out", tokenizer=tokenizer, vocab_size=vocab_size, progress=False)

    return run
