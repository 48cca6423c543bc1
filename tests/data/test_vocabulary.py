from __future__ import annotations

import json
from pathlib import Path

import pytest

from dist_trainer.data.vocabulary import (
    END_OF_TEXT,
    encode,
    end_of_text_id,
    load_vocabulary,
    num_token_ids,
    train_vocabulary,
)
from dist_trainer.errors import UserError

TEXT = "the rank reads the batch and the rank writes the record\n" * 20


def test_any_text_survives_a_vocabulary_trained_on_other_text() -> None:
    vocabulary = train_vocabulary([TEXT], 300)
    strange = "Ünïcode 数字 🙂\t\r\n\x00 end"
    assert vocabulary.decode(vocabulary.encode(strange).ids) == strange
    assert len(vocabulary.encode(TEXT).ids) < len(TEXT)


def test_the_vocabulary_stops_where_no_pair_occurs_twice() -> None:
    assert num_token_ids(train_vocabulary([TEXT], 280)) == 280
    assert 257 < num_token_ids(train_vocabulary([TEXT], 50257)) < 400


def test_the_smallest_vocabulary_is_the_bytes_and_the_end_of_text() -> None:
    vocabulary = train_vocabulary([TEXT], 257)
    assert num_token_ids(vocabulary) == 257
    assert len(vocabulary.encode(TEXT).ids) == len(TEXT)
    with pytest.raises(UserError, match="too small") as raised:
        train_vocabulary([TEXT], 256)
    assert raised.value.found == 256


def test_an_error_in_the_text_comes_through_the_trainer() -> None:
    def texts():  # type: ignore[no-untyped-def]
        yield TEXT
        raise UserError("an input is not UTF-8 text", where="b.txt")

    with pytest.raises(UserError, match="not UTF-8") as raised:
        train_vocabulary(texts(), 300)
    assert raised.value.where == "b.txt"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b'{"model": {"type": "BPE"}}'])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read") as raised:
        load_vocabulary(path)
    assert raised.value.where == str(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_vocabulary(tmp_path / "missing.json")


def test_a_loaded_tokenizer_neither_cuts_nor_pads(tmp_path: Path) -> None:
    vocabulary = train_vocabulary([TEXT], 300)
    whole = vocabulary.encode(TEXT).ids
    vocabulary.enable_truncation(5)
    vocabulary.enable_padding(length=5000)
    vocabulary.save(str(tmp_path / "tokenizer.json"))
    assert load_vocabulary(tmp_path / "tokenizer.json").encode(TEXT).ids == whole


def test_a_tokenizer_must_have_a_token_that_ends_a_text(tmp_path: Path) -> None:
    description = json.loads(train_vocabulary([TEXT], 300).to_str())
    assert end_of_text_id(train_vocabulary([TEXT], 300), "here") == 0

    for name, is_known in (("</s>", True), ("<pause>", False)):
        renamed = json.dumps(description).replace(END_OF_TEXT, name)
        (tmp_path / "tokenizer.json").write_text(renamed)
        vocabulary = load_vocabulary(tmp_path / "tokenizer.json")
        if is_known:
            assert end_of_text_id(vocabulary, "here") == 0
        else:
            with pytest.raises(UserError, match="no token that ends a text"):
                end_of_text_id(vocabulary, "here")


@pytest.mark.parametrize("change", [{"</s>": 4_000_000_000}, {}])
def test_a_tokenizer_whose_numbers_no_model_could_have_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    model = {"type": "WordLevel", "vocab": change, "unk_token": "a"}
    names = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model, **dict.fromkeys(names)}))
    with pytest.raises(UserError, match="no numbers that a model could have"):
        load_vocabulary(path)


def test_a_text_that_a_tokenizer_has_no_tokens_for_is_told(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"</s>": 0, "a": 1}, "unk_token": "no such"}
    names = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model, **dict.fromkeys(names)}))
    vocabulary = load_vocabulary(path)
    assert [list(ids) for ids in encode(vocabulary, ["a"], "here")] == [[1]]
    with pytest.raises(UserError, match="no tokens for a text"):
        encode(vocabulary, ["b"], "here")


def test_a_tokenizer_at_which_its_library_panics_is_refused_in_one_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = json.loads(train_vocabulary(["the cat sat on the mat, the cat"] * 3, 262).to_str())
    # Of a merge in a vocabulary with a prefix for what goes on, the library leaves out as many bytes.
    made["model"]["continuing_subword_prefix"] = "x" * 10_000
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(made))
    with pytest.raises(UserError, match="the tokenizer cannot be read"):
        load_vocabulary(path)
    assert capfd.readouterr().err == ""
