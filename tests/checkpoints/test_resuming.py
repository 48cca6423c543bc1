"""What a run would do with a checkpoint is said before it is started: refused, changed, and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoint_folders import checkpoint

from dist_trainer.checkpoints.changed import data_facts, made_by
from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.index import read
from dist_trainer.checkpoints.resuming import resuming
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve
from dist_trainer.data.tokens import open_tokens
from dist_trainer.errors import UserError


def tokens_at(folder: Path, *, first: int) -> Path:
    folder.mkdir()
    np.arange(first, first + 2000, dtype="uint16").tofile(folder / "train.bin")
    return folder


def request_of(data: Path | str, *settings: str, ds: str = "zero2") -> Request:
    return Request(config="tiny", ds=ds, settings=(f"data.source={data}", *settings))


@pytest.fixture
def found(tmp_path: Path) -> Found:
    """Of two ranks, which read the tokens in `data`."""
    data = tokens_at(tmp_path / "data", first=0)
    resolved = resolve(request_of(data), world_size=2, device=ANY_DEVICE)
    facts = data_facts(open_tokens(data, "train", resolved.run.model.vocab_size))
    made = made_by(resolved, world_size=2, data={phase.name: facts for phase in resolved.phases})
    folder = checkpoint(tmp_path / "checkpoints", 8, made_by=made)
    return Found(folder, read(folder))


def test_the_same_run_changes_nothing_wherever_its_data_lies(found: Found, tmp_path: Path) -> None:
    (tmp_path / "data").rename(tmp_path / "moved")
    asked = resuming(found, request_of(tmp_path / "moved"), world_size=2)
    assert (asked.refusal, asked.differences, asked.without_data) == (None, (), ())


def test_other_data_is_told_for_each_phase(found: Found, tmp_path: Path) -> None:
    other = tokens_at(tmp_path / "other", first=7)
    lines = resuming(found, request_of(other), world_size=2).differences
    assert [line.split(":")[0] for line in lines] == [
        "phase short context reads other data",
        "phase full context reads other data",
    ]


def test_the_built_in_corpus_is_not_made_to_be_compared(found: Found) -> None:
    asked = resuming(found, request_of("stdlib"), world_size=2)
    assert asked.without_data == ("short context", "full context")
    assert asked.differences == ()


def test_each_rank_reads_its_share_with_zero_and_all_without(found: Found, tmp_path: Path) -> None:
    whole = 2 * 85 * 4
    for ds, world_size, expected in (("zero1", 1, whole), ("zero3", 5, whole // 5), ("baseline", 5, whole)):
        asked = resuming(found, request_of(tmp_path / "data", ds=ds), world_size=world_size)
        assert asked.states_bytes == expected
        assert asked.verified_bytes == -(-found.index.num_bytes // world_size)


def test_another_model_is_refused_with_its_key(found: Found, tmp_path: Path) -> None:
    asked = resuming(found, request_of(tmp_path / "data", "model.num_layers=2"), world_size=2)
    assert asked.refusal is not None
    assert (asked.refusal.key, asked.refusal.found) == ("model.num_layers", 2)


def test_data_that_is_not_there_is_a_mistake(found: Found, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a token file cannot be read"):
        resuming(found, request_of(tmp_path / "nothing"), world_size=2)
