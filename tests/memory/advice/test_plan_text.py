"""A plan as text for a person (`advice/show.py`)."""

from __future__ import annotations

from advised import a_plan

from dist_trainer.memory.advice.show import add_up, render
from dist_trainer.units import GB, MIB


def test_rounded_parts_add_up_to_the_rounded_total() -> None:
    parts = {"a": 1_400_000, "b": 1_400_000, "c": 1_400_000}
    assert sum(add_up(parts, 10**6).values()) == round(sum(parts.values()) / 10**6) == 4
    assert add_up({"a": 5 * MIB}, MIB) == {"a": 5}


def test_what_is_not_modelled_is_never_passed_over() -> None:
    plan = a_plan(8 * GB, unmodelled=("pipeline: stages",), upper_bounds=("compile: less",), assumptions=("NCCL: 1",))
    text = render(plan, notices=["bf16: fp16 runs instead"], advice=["nearest    this"])
    for line in ("  pipeline: stages", "  compile: less", "  NCCL: 1", "  bf16: fp16 runs instead", "nearest    this"):
        assert line in text.splitlines()
