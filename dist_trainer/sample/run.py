"""The command from its checkpoint to its texts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dist_trainer.checkpoints.find import Found
from dist_trainer.cluster.threads import threads_here
from dist_trainer.errors import UserError
from dist_trainer.sample import show, tokenizer
from dist_trainer.sample.choosing import Choice
from dist_trainer.sample.generation import Ending, generate
from dist_trainer.sample.prompts import check_text, fit_in, parse_tokens, read_prompts
from dist_trainer.sample.tokenizer import Vocabulary
from dist_trainer.sample.weights import find_whole, load_model, model_config
from dist_trainer.streams import is_terminal

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Sampling:
    """What the command line asks for. `tokens`: prompts as ids, instead of text."""

    path: Path
    prompts: Sequence[str]
    prompts_file: Path | None
    tokens: Sequence[str]
    tokenizer: Path | None
    max_tokens: int
    temperature: float
    top_k: int | None
    seed: int
    precision: str
    device: str
    as_json: bool


def sample(asked: Sampling, *, tell: Callable[[str], None]) -> None:
    """Prints what follows each prompt, and on stderr how fast it was made. `tell` is told notices.

    Raises UserError, and DamageError if the checkpoint's files change while they are read.
    """
    device = _device(asked.device)
    texts = _texts(asked)
    found, notices = find_whole(asked.path)
    for notice in notices:
        tell(notice)
    config = model_config(found)
    if asked.tokens:
        vocabulary = None
        prompts = [parse_tokens(text, vocab_size=config.vocab_size) for text in asked.tokens]
        ending = Ending(asked.max_tokens, config.vocab_size)
    else:
        vocabulary = _vocabulary(asked, found, config.vocab_size, tell)
        prompts = [vocabulary.encode(text) for text in texts]
        ending = Ending(asked.max_tokens, vocabulary.num_ids, vocabulary.end_of_text)
    read = fit_in(prompts, config.context_length, tell)
    torch.set_num_threads(threads_here(os.environ, 1))
    model = load_model(found, config, dtype=_DTYPES[asked.precision], device=device)

    choice = Choice(asked.temperature, asked.top_k, asked.seed)
    live = None
    if vocabulary is not None and len(texts) == 1 and is_terminal(1) and not asked.as_json:
        live = show.LiveText(vocabulary, texts[0], read[0])
    begin = time.perf_counter()
    continuations = generate(model, read, choice, ending, *([live.add] if live else []))
    seconds = time.perf_counter() - begin
    num_tokens = sum(len(one.tokens) for one in continuations)

    pairs = None
    if vocabulary is not None:
        followed = zip(texts, read, continuations, strict=True)
        pairs = [(text, vocabulary.following(before, one.tokens)) for text, before, one in followed]
    if asked.as_json:
        facts = {"checkpoint": str(found.folder), "num_tokens": num_tokens, "seconds": seconds}
        show.show_json(facts, continuations, pairs)
    elif live is not None:
        live.end()
    elif pairs is not None:
        show.show_texts(["".join(pair) for pair in pairs])
    else:
        show.show_tokens(continuations)
    show.show_speed(found.folder.name, num_tokens, seconds)


def _device(name: str) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError("torch sees no GPU here", where="command line", key="--device", found=name, expected="cpu")
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")


def _texts(asked: Sampling) -> list[str]:
    """The prompts that were given as text; without any, an empty one."""
    in_file = read_prompts(asked.prompts_file) if asked.prompts_file is not None else []
    return [*map(check_text, asked.prompts), *in_file] or [""]


def _vocabulary(asked: Sampling, found: Found, vocab_size: int, tell: Callable[[str], None]) -> Vocabulary:
    if asked.tokenizer is not None:
        return tokenizer.from_file(asked.tokenizer, found, vocab_size=vocab_size, tell=tell)
    return tokenizer.of_checkpoint(found, vocab_size=vocab_size, progress=is_terminal(2))
