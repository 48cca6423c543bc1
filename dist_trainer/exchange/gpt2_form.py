"""GPT-2 as transformers has it: its parameters' names and its config.json, both ways.

Source: transformers' modeling_gpt2.py and configuration_gpt2.py. Its projections are [in, out] (Conv1D), ours
[out, in]. The output embedding is the token embedding, and has no weight of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from pydantic import ValidationError

from dist_trainer.config.run import ModelConfig
from dist_trainer.errors import UserError

TOKENS = "transformer.wte.weight"
# The tied output embedding, which some files repeat.
OUTPUT = "lm_head.weight"
PREFIX = "transformer."
_MODULES_OF_A_BLOCK = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.projection": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.expansion": "mlp.c_fc",
    "feed_forward.projection": "mlp.c_proj",
}
# Causal masks, which older versions wrote with the weights.
_MASKS = (".attn.bias", ".attn.masked_bias")
_SIZES = {
    "num_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_heads": "n_head",
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
}
_DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
# torch's own tanh form, to the bit.
_ACTIVATION = "gelu_pytorch_tanh"
_NORM_EPSILON = 1e-5
# Settings that this program's GPT has no other form of: transformers' default, and what agrees with it. gelu_new
# computes the same function in several steps, with other rounding.
_ONLY: Mapping[str, tuple[object, tuple[object, ...]]] = {
    "model_type": (None, ("gpt2",)),
    "activation_function": ("gelu_new", (_ACTIVATION, "gelu_new")),
    "layer_norm_epsilon": (_NORM_EPSILON, (_NORM_EPSILON,)),
    "tie_word_embeddings": (True, (True,)),
    "scale_attn_weights": (True, (True,)),
    "scale_attn_by_inverse_layer_idx": (False, (False,)),
    "add_cross_attention": (False, (False,)),
    "quantization_config": (None, (None,)),
}


@dataclass(frozen=True)
class Shape:
    """A model's, by the run file's keys. `num_heads`: None where the weights' program does not say it."""

    num_layers: int
    hidden_size: int
    num_heads: int | None
    vocab_size: int
    context_length: int

    @classmethod
    def of(cls, model: ModelConfig) -> Shape:
        return cls(*(getattr(model, one.name) for one in fields(cls)))


@dataclass(frozen=True)
class Weight:
    """A parameter under both names. `shape`: as it is here; transposed there if `transposed`."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def their_shape(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.transposed else self.shape


def weights_of(model: ModelConfig | Shape) -> Iterator[Weight]:
    """Every parameter of a model of this shape."""
    hidden = model.hidden_size
    yield Weight("token_embedding.weight", TOKENS, (model.vocab_size, hidden))
    yield Weight("position_embedding.weight", "transformer.wpe.weight", (model.context_length, hidden))
    outputs = {"attention.qkv": 3 * hidden, "feed_forward.expansion": 4 * hidden}
    inputs = {"feed_forward.projection": 4 * hidden}
    for number in range(model.num_layers):
        for ours, theirs in _MODULES_OF_A_BLOCK.items():
            is_norm = ours.endswith("_norm")
            num_out = outputs.get(ours, hidden)
            shape = (hidden,) if is_norm else (num_out, inputs.get(ours, hidden))
            before = f"blocks.{number}.{ours}", f"transformer.h.{number}.{theirs}"
            yield Weight(f"{before[0]}.weight", f"{before[1]}.weight", shape, transposed=not is_norm)
            yield Weight(f"{before[0]}.bias", f"{before[1]}.bias", (num_out,))
    for name in ("weight", "bias"):
        yield Weight(f"final_norm.{name}", f"transformer.ln_f.{name}", (hidden,))


def their_names(names: Iterable[str]) -> dict[str, str]:
    """A GPT2LMHeadModel's name of each parameter -> the name in the file. GPT2Model has them without the prefix; masks
    are left out.
    """
    return {
        name if name.startswith(PREFIX) or name == OUTPUT else PREFIX + name: name
        for name in names
        if not name.endswith(_MASKS)
    }


def config_of(model: ModelConfig, end_of_text_id: int | None) -> dict[str, Any]:
    """The config.json of a GPT2LMHeadModel that is this model."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": model.context_length,
        "n_embd": model.hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "activation_function": _ACTIVATION,
        "layer_norm_epsilon": _NORM_EPSILON,
        **dict.fromkeys(_DROPOUTS, model.dropout),
        "tie_word_embeddings": True,
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "dtype": "float32",
    }


def model_of(config: Mapping[str, Any], where: str) -> ModelConfig:
    """The model that a config.json describes. Raises UserError with the key of what this program's GPT cannot be."""
    for key, (default, possible) in _ONLY.items():
        said = config.get(key, default)
        if said not in possible:
            raise _cannot_be(where, key, said, " or ".join(map(str, possible)))
    sizes: dict[str, Any] = {ours: config.get(theirs) for ours, theirs in _SIZES.items()}
    dropouts = {config.get(key, 0.1) for key in _DROPOUTS if isinstance(config.get(key, 0.1), int | float)}
    try:
        model = ModelConfig(**sizes, dropout=float(dropouts.pop()) if len(dropouts) == 1 else 0.0)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = str(first["loc"][0]) if first["loc"] else "num_heads"
        raise _cannot_be(where, _SIZES.get(key, key), sizes.get(key), first["msg"]) from error
    inner = config.get("n_inner")
    if inner not in (None, 4 * model.hidden_size):
        raise _cannot_be(where, "n_inner", inner, f"{4 * model.hidden_size}, four times n_embd")
    return model


def _cannot_be(where: str, key: str, found: object, expected: str) -> UserError:
    return UserError(
        "this is not a model that this program's GPT can be", where=where, key=key, found=found, expected=expected
    )
