from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.doctor.protocol import Unpacker, pack

# SLURM cuts longer lines up.
LINE_LIMIT = 1024

TEXTS = st.text(max_size=3000)


@given(st.lists(TEXTS, min_size=1, max_size=4), st.randoms())
def test_answers_come_out_whole_from_any_mixture_of_short_lines(texts: list[str], chance: random.Random) -> None:
    packed = [
        line for number, text in enumerate(texts) for line in pack(f"n{number}", 7, {"answer": text}).splitlines()
    ]
    assert max(map(len, packed)) < LINE_LIMIT
    chance.shuffle(packed)
    unpacker = Unpacker()
    whole = [taken for line in packed if (taken := unpacker.take(line.encode())) is not None]
    assert sorted(whole) == [(f"n{number}", 7, {"answer": text}) for number, text in enumerate(texts)]


@pytest.mark.parametrize("line", ["", "Welcome to node1!", "1", "null", "[1, 2]", json.dumps({"id": 1})])
def test_other_lines_are_no_pieces(line: str) -> None:
    with pytest.raises(ValueError):
        Unpacker().take(line.encode())
