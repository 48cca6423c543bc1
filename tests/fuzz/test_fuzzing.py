"""A few hundred mutated inputs for every parser; CONTRIBUTING.md says how ten thousand are tried."""

from __future__ import annotations

import pytest
from fuzzing import fuzz
from parsers import PARSERS, Parser

SEED = 7
NUM_CASES = {True: 100, False: 30}


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_whatever_the_bytes_it_is_accepted_or_refused(parser: Parser) -> None:
    outcome = fuzz(parser, seed=SEED, cases=range(NUM_CASES[parser.is_fatal]))
    assert not outcome.failures, "\n".join(f"case {number}: {problem}" for number, problem in outcome.failures)
    # Mutations are to leave some inputs sound, or what comes after the parser is never tried.
    assert outcome.num_accepted
