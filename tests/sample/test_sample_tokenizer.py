from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpt_checkpoints import states_of, write

from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.index import DataFacts
from dist_trainer.data import corpus
from dist_trainer.data.info import DatasetInfo
from dist_trainer.data.vocabulary import END_OF_TEXT
from dist_trainer.errors import UserError
from dist_trainer.model.gpt import GPT
from dist_trainer.sample import tokenizer
from dist_trainer.sample.weights import find_whole


def a_checkpoint(folder: Path, model: GPT, **data: DataFacts) -> Found:
    return find_whole(write(folder, model, states_of(model), step=3, data=data))[0]


def refused(found: Found, vocab_size: int = 300) -> UserError:
    with pytest.raises(UserError) as caught:
        tokenizer.of_checkpoint(found, vocab_size=vocab_size)
    return caught.value


def test_the_tokenizer_is_that_of_the_runs_data(tmp_path: Path, trained: GPT, data: dict[str, DataFacts]) -> None:
    vocabulary = tokenizer.of_checkpoint(a_checkpoint(tmp_path, trained, **data), vocab_size=300)
    tokens = vocabulary.encode("the loss, ünder")
    assert vocabulary.following([], tokens) == "the loss, ünder"
    assert (
        vocabulary.following(tokens[:2], tokens[2:]) == "the loss, ünder"[len(vocabulary.following([], tokens[:2])) :]
    )
    assert vocabulary.num_ids <= 300
    assert vocabulary.encode("") == vocabulary.encode(END_OF_TEXT) == [vocabulary.end_of_text]


def test_another_digest_is_refused_with_the_file_and_the_cure(
    tmp_path: Path, trained: GPT, data: dict[str, DataFacts], dataset: tuple[Path, DatasetInfo]
) -> None:
    facts = data["all"]
    found = a_checkpoint(tmp_path, trained, all=DataFacts(facts.path, 1, "f00", "0" * 64))
    error = refused(found)
    assert error.where == str(dataset[0] / "tokenizer.json")
    assert error.found == f"sha256 {facts.tokenizer}" and "0" * 64 in str(error.expected)
    assert "--tokenizer FILE" in str(error.hint) and "--tokens" in str(error.hint)


def test_a_tokenizer_that_is_not_there_any_more_is_named(tmp_path: Path, trained: GPT) -> None:
    error = refused(a_checkpoint(tmp_path, trained, all=DataFacts("/nowhere/data/train.bin", 1, "f00", "0" * 64)))
    assert error.where == "/nowhere/data/tokenizer.json" and "is missing" in error.problem
    assert "--tokenizer FILE" in str(error.hint)


def test_data_without_a_tokenizer_is_named(tmp_path: Path, trained: GPT) -> None:
    error = refused(a_checkpoint(tmp_path / "raw", trained, all=DataFacts("raw/train.bin", 1, "f00", None)))
    assert error.where == "raw/train.bin" and "without a tokenizer" in error.problem
    assert "which data" in refused(a_checkpoint(tmp_path / "none", trained)).problem


def test_the_tokenizer_of_another_phase_is_taken_where_one_has_none(
    tmp_path: Path, trained: GPT, data: dict[str, DataFacts]
) -> None:
    found = a_checkpoint(tmp_path, trained, first=data["all"], last=DataFacts("raw/train.bin", 1, "f00", None))
    assert tokenizer.of_checkpoint(found, vocab_size=300).where.endswith("prepared/tokenizer.json")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
    tmp_path: Path, trained: GPT, data: dict[str, DataFacts]
) -> None:
    error = refused(a_checkpoint(tmp_path, trained, **data), vocab_size=260)
    assert "more tokens than the model" in error.problem


@pytest.mark.parametrize("is_link", [True, False])
def test_only_a_regular_file_beside_the_data_is_read(tmp_path: Path, trained: GPT, is_link: bool) -> None:
    (tmp_path / "data").mkdir()
    place = tmp_path / "data" / "tokenizer.json"
    place.symlink_to("/etc/passwd") if is_link else place.mkdir()
    facts = DataFacts(str(tmp_path / "data" / "train.bin"), 1, "f00", "0" * 64)
    assert refused(a_checkpoint(tmp_path / "checkpoints", trained, all=facts)).where == str(place)


def test_the_built_in_corpus_is_made_again_where_it_is_gone(
    tmp_path: Path, trained: GPT, dataset: tuple[Path, DatasetInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, info = dataset
    asked = []

    def prepared(vocab_size: int, **_: object) -> Path:
        asked.append(vocab_size)
        return folder

    monkeypatch.setattr(tokenizer, "standard_library_dataset", prepared)
    name = corpus.standard_library_name(300)
    facts = DataFacts(f"/gone/{name}/train.bin", 1, "f00", info.tokenizer_sha256)
    found = a_checkpoint(tmp_path / "a", trained, all=facts)
    assert tokenizer.of_checkpoint(found, vocab_size=300).where == str(folder / "tokenizer.json")
    assert asked == [300]
    of_another_python = DataFacts(f"/gone/x{name}/train.bin", 1, "f00", info.tokenizer_sha256)
    assert refused(a_checkpoint(tmp_path / "b", trained, all=of_another_python)).where is not None
    assert asked == [300]


def test_a_file_that_the_user_names_is_taken_and_told_if_it_is_another(
    tmp_path: Path, trained: GPT, data: dict[str, DataFacts], dataset: tuple[Path, DatasetInfo]
) -> None:
    found = a_checkpoint(tmp_path / "checkpoints", trained, **data)
    theirs = dataset[0] / "tokenizer.json"
    told: list[str] = []
    tokenizer.from_file(theirs, found, vocab_size=300, tell=told.append)
    assert told == []
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(theirs.read_text()), indent=1))
    assert tokenizer.from_file(other, found, vocab_size=300, tell=told.append).num_ids <= 300
    assert len(told) == 1 and told[0].startswith(f"{other} is not the tokenizer that the model was trained with")
    with pytest.raises(UserError, match="cannot be read"):
        tokenizer.from_file(tmp_path / "none.json", found, vocab_size=300, tell=told.append)
