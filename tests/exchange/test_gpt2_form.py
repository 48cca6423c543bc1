"""Names and config.json of transformers' GPT-2, both ways, and what this program's GPT cannot be."""

from __future__ import annotations

import json
from typing import Any

import gpt_checkpoints
import pytest

from dist_trainer.config.run import ModelConfig
from dist_trainer.errors import UserError
from dist_trainer.exchange.gpt2_form import Shape, config_of, model_of, their_names, weights_of

MODEL = ModelConfig(num_layers=2, hidden_size=48, num_heads=4, vocab_size=70, context_length=32, dropout=0.1)


def test_the_table_has_every_parameter_of_the_model_with_its_shape() -> None:
    gpt = gpt_checkpoints.model()
    ours = {name: tuple(parameter.shape) for name, parameter in gpt.named_parameters()}
    assert {weight.ours: weight.shape for weight in weights_of(gpt.config)} == ours


def test_their_names_and_shapes_are_those_of_transformers() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(GPT2Config(**config_of(MODEL, None)))
    shapes = {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}
    assert {weight.theirs: weight.their_shape for weight in weights_of(MODEL)} == shapes


def test_a_config_says_the_model_that_it_was_written_of() -> None:
    assert model_of(config_of(MODEL, 7), "config.json") == MODEL


def test_a_shape_without_heads_has_the_same_parameters() -> None:
    shape = Shape(2, 48, None, 70, 32)
    assert list(weights_of(shape)) == list(weights_of(MODEL))


def test_names_without_the_prefix_are_found_and_masks_left_out() -> None:
    names = ["wte.weight", "transformer.wpe.weight", "h.0.attn.bias", "h.0.attn.c_attn.bias", "lm_head.weight"]
    assert their_names(names) == {
        "transformer.wte.weight": "wte.weight",
        "transformer.wpe.weight": "transformer.wpe.weight",
        "transformer.h.0.attn.c_attn.bias": "h.0.attn.c_attn.bias",
        "lm_head.weight": "lm_head.weight",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("model_type", None),
        ("activation_function", "gelu"),
        ("activation_function", "relu"),
        ("n_inner", 96),
        ("n_inner", "many"),
        ("layer_norm_epsilon", 1e-6),
        ("tie_word_embeddings", False),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("quantization_config", {"bits": 4}),
        ("n_layer", 10**12),
        ("n_layer", None),
        ("n_embd", "48"),
        ("n_embd", [48]),
        ("n_head", 0),
        ("vocab_size", -1),
        ("n_positions", 2**60),
    ],
    ids=json.dumps,
)
def test_what_cannot_be_here_is_refused_with_its_key(key: str, value: Any) -> None:
    with pytest.raises(UserError) as refused:
        model_of({**config_of(MODEL, None), key: value}, "config.json")
    assert refused.value.key == key
    assert refused.value.where == "config.json"


def test_heads_that_do_not_divide_the_hidden_size_are_refused() -> None:
    with pytest.raises(UserError, match="not a multiple"):
        model_of({**config_of(MODEL, None), "n_head": 5}, "config.json")


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", None])
def test_both_names_of_the_tanh_form_and_the_default_are_taken(activation: str | None) -> None:
    config = config_of(MODEL, None)
    del config["activation_function"]
    model_of({**config, **({"activation_function": activation} if activation else {})}, "config.json")


def test_dropouts_that_differ_are_none_because_the_run_file_says_its_own() -> None:
    assert model_of({**config_of(MODEL, None), "attn_pdrop": 0.3}, "config.json").dropout == 0.0
