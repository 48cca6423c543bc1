from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from dist_trainer.checkpoints.position import Position, order_name
from dist_trainer.config.progress import Progress
from dist_trainer.data.sampler import DataPlace, Order
from dist_trainer.data.tokens import TokenFile, open_tokens


def tokens_at(path: Path, values: np.ndarray) -> TokenFile:  # type: ignore[type-arg]
    values.astype("<u2").tofile(path)
    return open_tokens(path, "train", 2**16)


def test_a_step_counts_in_its_phase_in_all_and_in_its_data() -> None:
    position = Position()
    for phase, tokens, read in (("a", 8, 8), ("a", 8, 16), ("b", 4, 20)):
        position = position.after_step(phase, num_tokens=tokens, order="data", place=DataPlace(0, read, 4))
    assert position.step == 3
    assert position.progress("a") == Progress(2, 16)
    assert position.progress("b") == Progress(1, 4)
    assert position.progress("c") == Progress()
    assert position.places == {"data": DataPlace(0, 20, 4)}


def test_the_same_tokens_are_the_same_data_wherever_they_lie(tmp_path: Path) -> None:
    values = np.arange(10_000) % 500
    here, there = (tokens_at(tmp_path / f"{name}-train.bin", values) for name in ("a", "b"))
    longer = tokens_at(tmp_path / "c-train.bin", np.append(values, 1))
    other = tokens_at(tmp_path / "d-train.bin", (values + 1) % 500)
    orders = [Order(10_000, length, 64, 1) for length in (64, 16, 48)]
    names = {order_name(tokens, order) for tokens in (here, there) for order in orders[:2]}
    assert len(names) == 1
    for tokens in (longer, other):
        assert order_name(tokens, orders[0]) not in names
    # A length that does not divide the context's has an order, and a place, of its own.
    assert order_name(here, orders[2]) not in names
    assert order_name(here, dataclasses.replace(orders[2], seed=2)) == order_name(here, orders[2])
