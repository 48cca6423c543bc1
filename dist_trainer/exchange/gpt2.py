"""A checkpoint's weights as a folder that Hugging Face's GPT2LMHeadModel.from_pretrained loads.

The form: config.json, and model.safetensors with the names of `gpt2_form`. The output embedding is the token embedding,
and is not written again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from dist_trainer.checkpoints.data_file import BYTES_OF, header_of
from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.index import INDEX_FILE, WEIGHT
from dist_trainer.config.deepspeed.rules import block
from dist_trainer.config.run import ModelConfig
from dist_trainer.data.atomic_folder import atomic_folder
from dist_trainer.data.info import TOKENIZER_FILE
from dist_trainer.data.vocabulary import end_of_text_id, load_vocabulary, num_token_ids
from dist_trainer.disk import check_room, write_text, writing
from dist_trainer.errors import UserError
from dist_trainer.exchange.gpt2_form import Weight, config_of, weights_of
from dist_trainer.exchange.reading import Reader, memory_of

_DTYPE = "F32"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer.json, and its token that ends a text."""

    content: bytes
    end_of_text: str
    end_of_text_id: int


def export(found: Found, output: Path, *, tokenizer: Path | None) -> None:
    """Makes the folder `output`, whole or not at all. `tokenizer`: a tokenizer.json to put into it.

    Raises UserError if `output` exists, if the checkpoint is not of a GPT, or if the tokenizer is not that of the run's
    data; DamageError for files that cannot be read.
    """
    model = _model_of(found)
    weights = list(weights_of(model))
    _check_same(found, weights)
    vocabulary = None if tokenizer is None else _vocabulary(tokenizer, found, model)
    with atomic_folder(output) as folder:
        _write_weights(folder / "model.safetensors", found, weights)
        ends = None if vocabulary is None else vocabulary.end_of_text_id
        _write_json(folder / "config.json", config_of(model, ends))
        if vocabulary is not None:
            with writing(folder / TOKENIZER_FILE, len(vocabulary.content)):
                (folder / TOKENIZER_FILE).write_bytes(vocabulary.content)
            _write_json(folder / "tokenizer_config.json", _tokenizer_config(model, vocabulary))


def _tokenizer_config(model: ModelConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": vocabulary.end_of_text,
        "eos_token": vocabulary.end_of_text,
        "model_max_length": model.context_length,
        "clean_up_tokenization_spaces": False,
    }


def _model_of(found: Found) -> ModelConfig:
    try:
        return ModelConfig.model_validate(block(found.index.made_by.run, "model"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _not_a_gpt(found, ".".join(map(str, ("model", *first["loc"]))), None, first["msg"]) from error


def _check_same(found: Found, weights: list[Weight]) -> None:
    there = {name: parameter.shape for name, parameter in found.index.parameters.items()}
    expected = {weight.ours: weight.shape for weight in weights}
    for name in (*expected, *there):
        if there.get(name) != expected.get(name):
            said = (
                f"shape {list(expected[name])}, from the model's settings" if name in expected else "no such parameter"
            )
            raise _not_a_gpt(found, name, list(there[name]) if name in there else None, said)


def _not_a_gpt(found: Found, key: str, is_there: object, expected: str) -> UserError:
    return UserError(
        "the checkpoint is not one of this program's GPT, so it cannot be exported",
        where=str(found.folder / INDEX_FILE),
        key=key,
        found=is_there,
        expected=expected,
    )


def _vocabulary(path: Path, found: Found, model: ModelConfig) -> Vocabulary:
    tokenizer = load_vocabulary(path)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    known = {facts.tokenizer for facts in found.index.made_by.data.values() if facts.tokenizer is not None}
    if known and digest not in known:
        raise UserError(
            "this is not the tokenizer of the data that the run was trained on",
            where=str(path),
            key="sha256",
            found=digest,
            expected=" or ".join(sorted(known)),
        )
    if num_token_ids(tokenizer) > model.vocab_size:
        raise UserError(
            "the tokenizer has more tokens than the model",
            where=str(path),
            found=num_token_ids(tokenizer),
            expected=f"at most {model.vocab_size}",
        )
    ends = end_of_text_id(tokenizer, str(path))
    end_of_text = tokenizer.id_to_token(ends)
    assert end_of_text is not None
    return Vocabulary(content, end_of_text, ends)


def _write_weights(path: Path, found: Found, weights: list[Weight]) -> None:
    header = header_of(((one.theirs, _DTYPE, one.their_shape) for one in weights), {"format": "pt"})
    num_bytes = len(header) + sum(math.prod(one.shape) for one in weights) * BYTES_OF[_DTYPE]
    check_room(path.parent, num_bytes, "the model")
    with Reader(found.folder, found.index) as reader, writing(path, num_bytes), path.open("xb") as opened:
        opened.write(header)
        for one in weights:
            tensor = torch.empty(one.shape, dtype=torch.float32)
            reader.read_into(tensor, one.ours, WEIGHT, 0)
            opened.write(memory_of(tensor.t().contiguous() if one.transposed else tensor))
        opened.flush()
        os.fsync(opened.fileno())


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
