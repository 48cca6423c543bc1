"""Seeded mutations of inputs: of bytes and lines for any text, and of values for what is JSON."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

Form = Literal["text", "json", "jsonl", "bytes"]

DIGITS = b"9" * 5000
# What has been, or might be, trouble for some parser of some kind.
TOKENS: tuple[bytes, ...] = (
    *(
        b"",
        b" ",
        b"\0",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xc3",
        b"\xef\xbb\xbf",
        b"\r",
        b"\r\n",
        b"\n",
        b"\t",
        b"\x1b[2J",
    ),
    *(
        b"\\",
        b"\\ud800",
        b"\\u0000",
        b'"',
        b"'",
        b"`",
        b"$(",
        b"<<EOF",
        b"#",
        b"//",
        b"%",
        b"@",
        b"&",
        b"|",
        b";",
        b"!",
    ),
    *(b"[" * 500, b"{" * 500, b"(" * 500, b'{"a":' * 500, b"[" * 20_000, b"- " * 500, b"a.0." * 500, b"[0-9]" * 12),
    *(
        DIGITS,
        b"-" + DIGITS,
        b"1." + DIGITS,
        DIGITS[:320],
        DIGITS[:40],
        b"9223372036854775808",
        b"18446744073709551616",
    ),
    *(
        b"0",
        b"-1",
        b"-0.0",
        b"1e999",
        b"-1e999",
        b"1e-999",
        b"1e308",
        b"1E5",
        b"010",
        b"0x10",
        b"0b1",
        b"1_000",
        b"1:30",
    ),
    *(b"NaN", b"nan", b".nan", b"Infinity", b"-Infinity", b".inf", b"inf", b"null", b"~", b"true", b"no", b"auto"),
    *("²".encode(), "٣".encode(), "\u2028".encode(), "ß".encode(), "\U0001f600".encode()),
    *(
        b"[]",
        b"{}",
        b"{[]}",
        b"s: {[]}",
        b"? []",
        b"*a",
        b"&a [*a]",
        b"&a {b: *a}",
        b"<<: *a",
        b"!!python/object:os.x y",
    ),
    *(
        b"!!timestamp x",
        b"!!int x",
        b"!!binary ?",
        b"!!set {a}",
        b"!!float a",
        b"2026-99-99",
        b"---",
        b"...",
        b"? ",
        b": ",
    ),
    *(
        b"../..",
        b"/",
        b"/dev/zero",
        b"..",
        b"-",
        b"--",
        b"=",
        b",",
        b":",
        b"(x99999)",
        b"[0-65535][0-65535]",
        b"slots=0",
    ),
)
WHOLE: tuple[bytes, ...] = (
    *(b"", b"\0", b"\n", b"null", b"[]", b"{}", b'""', b"0", b"true", b"[{}]", b"\xef\xbb\xbf", DIGITS, b"{" * 100_000),
    *(b"[" * 200_000, b"\xff\xfe{\0}\0", b"\0" * 4096, b"\xff" * 64),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**40, 10**310, 0.5, -0.0, 1e308, 5e-324),
    *(float("nan"), float("inf"), -float("inf"), "", "x", "auto", "0", "1e9", "9" * 5000, "x" * 10_000, "\ud800", "\0"),
    *(
        "../..",
        "/dev/zero",
        "\x1b[2J",
        "<script>",
        "a\nb",
        "²",
        [],
        {},
        [[]],
        [{}],
        {"": {}},
        {"a": None},
        [None],
        [0] * 2000,
    ),
)


def nested(depth: int, inner: Any) -> Any:
    for _ in range(depth):
        inner = [inner] if depth % 2 else {"a": inner}
    return inner


def mutate(rng: random.Random, seeds: Sequence[bytes], form: Form) -> bytes:
    """One of the seeds, changed once to four times; now and then something else altogether."""
    seed = rng.choice(seeds)
    if rng.random() < 0.02:
        return rng.choice(WHOLE)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        seed = _once(rng, seed, seeds, form)
    return seed


def _once(rng: random.Random, data: bytes, seeds: Sequence[bytes], form: Form) -> bytes:
    if form == "json" and rng.random() < 0.7:
        return _json(rng, data)
    if form == "jsonl" and rng.random() < 0.7:
        lines = data.splitlines(keepends=True)
        if lines:
            place = rng.randrange(len(lines))
            lines[place] = _json(rng, lines[place].rstrip(b"\n")) + b"\n"
        return b"".join(lines)
    if form != "bytes" and rng.random() < 0.3:
        return _lines(rng, data, seeds)
    return _bytes(rng, data, seeds)


def _bytes(rng: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 1, 2, 4, 8, 32, 200)))
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: data[:start] + data[end:],
        lambda: data[:start] + data[start:end] * rng.choice((2, 3, 50)) + data[end:],
        lambda: data[:start] + rng.choice(TOKENS) + data[start:],
        lambda: data[:start] + rng.choice(TOKENS) + data[end:],
        lambda: data[:start] + bytes([rng.randrange(256)]) + data[start + 1 :],
        lambda: data[:start],
        lambda: data[:start] + rng.choice(seeds)[start:],
        lambda: _word(rng, data),
        lambda: _word(rng, data),
    )
    return rng.choice(changes)()


def _word(rng: random.Random, data: bytes) -> bytes:
    """Another word in the place of one: a value in the place of a value, as a rule."""
    places = [index for index in range(len(data)) if data[index : index + 1].isalnum()]
    if not places:
        return data + rng.choice(TOKENS)
    start = end = rng.choice(places)
    while start > 0 and (data[start - 1 : start].isalnum() or data[start - 1] in b"._-"):
        start -= 1
    while end < len(data) and (data[end : end + 1].isalnum() or data[end] in b"._-"):
        end += 1
    return data[:start] + rng.choice(TOKENS) + data[end:]


def _lines(rng: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    place = rng.randrange(len(lines))
    kind = rng.randrange(5)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines.insert(place, lines[place])
    elif kind == 2:
        lines.insert(place, rng.choice(rng.choice(seeds).splitlines(keepends=True) or [b"\n"]))
    elif kind == 3:
        lines.insert(place, rng.choice(TOKENS) + b"\n")
    else:
        lines[place] = lines[place].rstrip(b"\n") + b"\r\n"
    return b"".join(lines)


def _json(rng: random.Random, data: bytes) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places = list(_places(value))
    if not places:
        return json.dumps(rng.choice(VALUES)).encode()
    parent, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del parent[key]
    elif kind == 1:
        other, other_key = rng.choice(places)
        with suppress(RecursionError):
            parent[key] = copy.deepcopy(other[other_key]) if other is not parent[key] else None
    elif kind == 2:
        parent[key] = nested(rng.choice((1, 2, 60, 300)), parent[key])
    elif kind == 3 and isinstance(parent, dict):
        parent[rng.choice(("", "x", "auto", "\0", "a.b", "type", "params", "enabled"))] = rng.choice(VALUES)
    else:
        parent[key] = rng.choice(VALUES)
    text = json.dumps(value, separators=(",", ":"))
    if kind == 4 and isinstance(parent, dict):
        # A key said twice, which no dict can hold.
        text = text.replace(f'"{key}":', f'"{key}":null,"{key}":', 1)
    return text.encode()


def _places(value: Any) -> Any:
    """(container, key) of every value in it."""
    stack = [value]
    while stack:
        here = stack.pop()
        for key in list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ():
            yield here, key
            if isinstance(here[key], (dict, list)):
                stack.append(here[key])
