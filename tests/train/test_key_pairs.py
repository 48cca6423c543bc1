"""Our verdict on a file beside that of the real engine, which builds and takes two steps: the short form of the walk in
key_pairs.py."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import key_pairs
import pytest
from engine_cases import CASES
from one_rank import MICRO_BATCH

pytestmark = pytest.mark.integration

# They hold nine of ten pairs of values.
NUM_ROWS = 16


@pytest.fixture(scope="module", autouse=True)
def engines() -> Iterator[None]:
    with key_pairs.one_engine_after_another():
        yield


@pytest.mark.parametrize(("raw", "key"), [(raw, key) for raw, key, _ in CASES])
def test_what_is_refused_for_the_engine_is_refused_by_it(raw: dict[str, Any], key: str) -> None:
    config = {"train_micro_batch_size_per_gpu": MICRO_BATCH, "optimizer": {"type": "AdamW"}, **raw}
    config["optimizer"] = {"params": {}, **config["optimizer"]}
    assert key_pairs.engines_verdict(config) is not None, key


def test_what_is_accepted_trains(tmp_path: Path) -> None:
    for said in itertools.islice(key_pairs.rows(), NUM_ROWS):
        found = key_pairs.verdict(key_pairs.configuration(said), tmp_path)
        assert found.agree, f"{json.dumps(said)}\nours: {found.ours}\nengine: {found.engines}"
