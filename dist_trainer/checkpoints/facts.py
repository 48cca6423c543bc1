"""What an index says, summed up. It may be a stranger's: what cannot be understood in it is None."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dist_trainer.checkpoints.index import Index, Made
from dist_trainer.config.deepspeed import rules

MODEL_KEYS = ("num_layers", "hidden_size", "num_heads", "vocab_size", "context_length")


@dataclass(frozen=True)
class StateFacts:
    """One state of all parameters. `dtypes`: safetensors' names, in alphabetical order."""

    num_parameters: int
    dtypes: tuple[str, ...]
    num_bytes: int


def stage_of(made: Made) -> int | None:
    """The ZeRO stage."""
    try:
        return rules.zero_stage(made.deepspeed)
    except (TypeError, ValueError, OverflowError):
        return None


def precision_of(made: Made) -> str:
    return rules.precision(made.deepspeed)


def optimizer_of(made: Made) -> str | None:
    kind = rules.block(made.deepspeed, "optimizer").get("type")
    return kind if isinstance(kind, str) else None


def model_of(made: Made) -> Mapping[str, Any]:
    """Its shape by the run file's keys, whatever the values are."""
    model = rules.block(made.run, "model")
    return {key: model.get(key) for key in MODEL_KEYS}


def num_tokens(index: Index) -> int:
    """How many the run had trained on."""
    return sum(progress.tokens for progress in index.position.phases.values())


def num_elements(index: Index) -> int:
    """Of all parameters."""
    return sum(parameter.num_elements for parameter in index.parameters.values())


def states_of(index: Index) -> dict[str, StateFacts]:
    """By name; the weight first."""
    num_parameters: dict[str, int] = defaultdict(int)
    dtypes: dict[str, set[str]] = defaultdict(set)
    num_bytes: dict[str, int] = defaultdict(int)
    for parameter in index.parameters.values():
        for name, state in parameter.states.items():
            num_parameters[name] += 1
            dtypes[name].add(state.dtype)
    for _, name, _, piece_bytes in index.pieces():
        num_bytes[name] += piece_bytes
    names = ("weight", *index.states)
    return {name: StateFacts(num_parameters[name], tuple(sorted(dtypes[name])), num_bytes[name]) for name in names}
