"""Arguments that a shell, argparse or a launcher might take for its own: a fixed list, and any printable ones."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

LITERAL = (
    "--max-steps",
    "--b",
    "--n=3",
    "--m",
    "a b",
    "it's",
    "$HOME",
    ";",
    '{"a":1}',
    "",
    '"',
    "*",
    "--",
    "é\\n",
    # No UTF-8, as a file may be named.
    "caf\udce9",
    "-x",
    string.printable,
    *string.punctuation,
    "".join(character for character in map(chr, range(0xA0, 0x3000)) if character.isprintable()),
)
_TEXT = st.text(st.characters(exclude_categories=["C"]) | st.sampled_from(string.printable))
_WORDS = st.lists(_TEXT | _TEXT.map("--{}".format) | st.sampled_from(LITERAL), min_size=10, max_size=100)


def any_words(num_drawn: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of `words` for the fixed list and `num_drawn` others, of which the first is always the simplest there is.

    Each starts ranks: what fails is not made smaller.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        limits: Any = settings(
            max_examples=num_drawn,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        decorated: Callable[..., None] = limits(given(words=_WORDS)(example(words=list(LITERAL))(test)))
        return decorated

    return decorate
