from __future__ import annotations

import json
import math

import pytest

from dist_trainer.strict_json import MAX_DEPTH, MAX_DIGITS, HjsonError, TooMuchError, loads, loads_hjson


def test_what_is_json_is_read_as_json_has_it() -> None:
    for value in (None, True, -3, 0.1 + 0.2, "x", [1, [2]], {"a": {"b": [None]}}, 10 ** (MAX_DIGITS - 1)):
        assert loads(json.dumps(value)) == value
    assert math.isinf(loads("Infinity"))
    assert loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("9" * 5000, "5000 digits"),
        ("-" + "9" * 4301, "4302 digits"),
        ("[" * 101 + "]" * 101, "more than 100 deep"),
        ('{"a":' * 200 + "1" + "}" * 200, "more than 100 deep"),
        ("[" * 200_000 + "]" * 200_000, "too deep"),
        ("1e999", "too large"),
        ("1." + "0" * 10 + "e400", "too large"),
    ],
    ids=lambda text: text[:12],
)
def test_what_nothing_has_a_use_for_is_refused(text: str, problem: str) -> None:
    with pytest.raises(TooMuchError, match=problem):
        loads(text)


@pytest.mark.parametrize("text", ["", "{", "[1,]", "{1: 2}", "nul", "\0", "[" * 100])
def test_what_is_no_json_is_told_with_its_place(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        loads(text)


def test_a_document_that_is_only_looked_into_may_be_as_deep_as_can_be_read() -> None:
    assert loads("[" * 300 + "]" * 300, max_depth=None)


def test_hjson_is_read_with_the_same_bounds() -> None:
    assert loads_hjson("{a: text, // no remark\n b: 'x', # one\n c: [1e3\n2,], /* two */}") == {
        "a": "text, // no remark",
        "b": "x",
        "c": [1000, 2],
    }
    assert loads_hjson("a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1))
    for text in ("a: " + "9" * 5000, "a: " + "[" * 100 + "]" * 100, "[" * 200_000 + "]" * 200_000, "a: 1e999"):
        with pytest.raises(TooMuchError):
            loads_hjson(text)


@pytest.mark.parametrize("text", ["{", "{a: b}", "a: '''x", "/* x", "{a: {\n", "[1", '"\x01"', "{'a' 1}"])
def test_what_is_no_hjson_is_told_with_its_place(text: str) -> None:
    with pytest.raises(HjsonError) as caught:
        loads_hjson(text)
    assert caught.value.lineno >= 1
    assert "%r" not in caught.value.msg
