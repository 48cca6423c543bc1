"""One line of the doctor's table, and how findings about many hosts are merged into few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

# "skip": not checked (`found` says why), and so neither good nor bad.
Level = Literal["ok", "skip", "warn", "fail"]
LEVELS: tuple[Level, ...] = ("fail", "warn", "skip", "ok")

Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True)
class Finding:
    """One finding. `hosts`: the hosts it is about, empty for all that answered; `do`: what to do about it."""

    level: Level
    check: str
    found: str
    hosts: tuple[str, ...] = ()
    do: str | None = None


def usual(values: Mapping[str, Value], here: Value | None = None) -> Value:
    """The most frequent value; of equally frequent ones `here` (the doctor's own host), else the first host's."""
    counts = Counter(values.values())
    most = max(counts.values())
    if here is not None and counts.get(here) == most:
        return here
    return next(value for value in values.values() if counts[value] == most)


def by_value(values: Mapping[str, Value]) -> dict[Value, tuple[str, ...]]:
    """The hosts that have each value, in the given order."""
    found: dict[Value, list[str]] = {}
    for host, value in values.items():
        found.setdefault(value, []).append(host)
    return {value: tuple(hosts) for value, hosts in found.items()}


def sameness(
    check: str, values: Mapping[str, str], *, level: Level, do: str, here: str | None = None
) -> Iterator[Finding]:
    """One line if all hosts have the same value; else one for each value other than the most frequent one.

    `here`: the value on the doctor's own host. If all hosts share another value, that is a warning.
    """
    if not values:
        return
    common = usual(values, here)
    groups = by_value(values)
    if len(groups) == 1:
        if here in (None, common):
            yield Finding("ok", check, common)
        else:
            yield Finding("warn", check, f"{common}, where the doctor itself runs with {here}", tuple(values), do)
        return
    others = groups[common]
    who = f"{others[0]} has" if len(others) == 1 else f"{len(others)} hosts have"
    for value, hosts in groups.items():
        if value != common:
            yield Finding(level, check, f"{value}, where {who} {common}", hosts, do)


def grouped(level: Level, check: str, found: Mapping[str, str], do: str | None) -> Iterator[Finding]:
    """One line for each text, about all hosts that have it."""
    for text, hosts in by_value(found).items():
        yield Finding(level, check, text, hosts, do)


def all_well(check: str, found: str, known: Collection[str], asked: Collection[str]) -> Iterator[Finding]:
    """An "ok" for the hosts in `known`, and a "skip" for the others that were `asked`."""
    missing = tuple(name for name in asked if name not in known)
    if known:
        yield Finding("ok", check, found, tuple(known) if missing else ())
    if missing:
        yield Finding("skip", check, "not known", missing if known else ())


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level of all; "skip" does not count."""
    levels = {finding.level for finding in findings} - {"skip"}
    return next((level for level in LEVELS if level in levels), "ok")
