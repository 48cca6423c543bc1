"""What is exported is the same model in transformers, to the bit, and is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gpt_checkpoints
import pytest
import torch
from checkpoint_folders import checkpoint

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.index import DataFacts
from dist_trainer.data.vocabulary import train_vocabulary
from dist_trainer.errors import UserError
from dist_trainer.exchange.gpt2 import export
from dist_trainer.model.gpt import GPT


def found_of(tmp_path: Path, gpt: GPT, **how: Any) -> Found:
    folder = gpt_checkpoints.write(tmp_path / "checkpoints", gpt, gpt_checkpoints.states_of(gpt), **how)
    return Found(folder, index.read(folder))


def loaded(folder: Path) -> Any:
    from transformers import GPT2LMHeadModel

    model, told = GPT2LMHeadModel.from_pretrained(str(folder), output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"pad_vocab": True},
        {"num_heads": 1},
        {"num_heads": 8, "hidden_size": 64, "num_layers": 3, "pad_vocab": True, "vocab_size": 300},
    ],
    ids=json.dumps,
)
def test_the_logits_of_the_exported_model_are_the_same_to_the_bit(tmp_path: Path, shape: dict[str, Any]) -> None:
    gpt = gpt_checkpoints.model(**shape)
    export(found_of(tmp_path, gpt), tmp_path / "out", tokenizer=None)
    theirs = loaded(tmp_path / "out")
    assert theirs.dtype == torch.float32
    assert theirs.config._attn_implementation == "sdpa"
    for batch, length in ((1, 17), (2, 32)):
        tokens = torch.randint(gpt.config.vocab_size, (batch, length))
        with torch.no_grad():
            assert torch.equal(theirs(tokens).logits, gpt(tokens))


def test_a_sequence_of_one_token_differs_by_rounding_alone(tmp_path: Path) -> None:
    gpt = gpt_checkpoints.model()
    export(found_of(tmp_path, gpt), tmp_path / "out", tokenizer=None)
    tokens = torch.randint(gpt.config.vocab_size, (3, 1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(tmp_path / "out")(tokens).logits, gpt(tokens), rtol=1e-5, atol=1e-6)


def test_the_export_is_the_same_whatever_ranks_saved(tmp_path: Path) -> None:
    gpt = gpt_checkpoints.model()
    for num_ranks in (1, 3):
        found = found_of(tmp_path / str(num_ranks), gpt, num_ranks=num_ranks)
        export(found, tmp_path / f"out-{num_ranks}", tokenizer=None)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / f"out-{num_ranks}").iterdir()} for num_ranks in (1, 3)
    )
    assert first == second
    assert set(first) == {"config.json", "model.safetensors"}


def test_its_tokenizer_is_loaded_beside_it_and_its_model_writes_text(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    vocabulary = train_vocabulary(["the quick brown fox jumps over the lazy dog"] * 9, 300)
    file = tmp_path / "tokenizer.json"
    vocabulary.save(str(file))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    gpt = gpt_checkpoints.model(vocab_size=300)
    found = found_of(tmp_path, gpt, data={"short": DataFacts("data/train.bin", 1000, "f00", digest)})
    export(found, tmp_path / "out", tokenizer=file)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    words = "the lazy fox"
    ids = tokenizer(words)["input_ids"]
    assert ids == vocabulary.encode(words).ids
    assert tokenizer.decode(ids) == words
    assert tokenizer.eos_token_id == vocabulary.token_to_id("<|endoftext|>")
    theirs = loaded(tmp_path / "out")
    assert theirs.generation_config.eos_token_id == tokenizer.eos_token_id
    written = theirs.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert written.shape[1] > len(ids)


def test_a_tokenizer_of_other_data_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    train_vocabulary(["some text"], 300).save(str(file))
    gpt = gpt_checkpoints.model(vocab_size=300)
    found = found_of(tmp_path, gpt, data={"short": DataFacts("data/train.bin", 1000, "f00", "0" * 64)})
    with pytest.raises(UserError, match="not the tokenizer of the data") as refused:
        export(found, tmp_path / "out", tokenizer=file)
    assert refused.value.where == str(file)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    train_vocabulary(["some text"], 300).save(str(file))
    found = found_of(tmp_path, gpt_checkpoints.model(), data={})
    with pytest.raises(UserError, match="more tokens than the model"):
        export(found, tmp_path / "out", tokenizer=file)


def test_a_folder_that_has_something_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    found = found_of(tmp_path, gpt_checkpoints.model())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export(found, tmp_path / "out", tokenizer=None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    found = found_of(tmp_path, gpt_checkpoints.model())
    (found.folder / "rank-00001.safetensors").unlink()
    with pytest.raises(Exception, match="is missing"):
        export(found, tmp_path / "out", tokenizer=None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_checkpoint_of_another_model_is_refused_with_the_parameter(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoints", 8)
    with pytest.raises(UserError, match="not one of this program's GPT") as refused:
        export(Found(folder, index.read(folder)), tmp_path / "out", tokenizer=None)
    assert refused.value.key == "token_embedding.weight"


def test_settings_that_are_no_models_are_refused_with_the_key(tmp_path: Path) -> None:
    gpt = gpt_checkpoints.model()
    gpt.config = gpt.config.model_copy(update={"num_layers": 10**9})
    with pytest.raises(UserError) as refused:
        export(found_of(tmp_path, gpt), tmp_path / "out", tokenizer=None)
    assert refused.value.key == "model.num_layers"
