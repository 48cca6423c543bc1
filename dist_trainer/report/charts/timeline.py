"""How the ranks started: a bar for each rank, a segment for each stage, on one scale."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dist_trainer.report.reading.starts import RankStart, Stage
from dist_trainer.units import counted

MAX_NUM_RANKS = 8
# A stage has the same colour in every report; what passes before the rank itself runs is grey.
COLOURS = {
    "launch": "g0",
    "guard": "g1",
    "spawn": "g2",
    "files": "c3",
    "imports": "c0",
    "plan": "c5",
    "data": "c1",
    "rendezvous": "c7",
    "opening": "g0",
    "engine": "c4",
    "resume": "c8",
    "compile": "c6",
    "first step": "c2",
}
_OTHER = "g0"
# Percent of the scale: a narrower segment has no room for its name.
_NAMED_PERCENT = 9.0


@dataclass(frozen=True)
class Segment:
    """`percent`: of the scale that all bars share. `is_named`: there is room for its name."""

    name: str
    text: str
    percent: float
    colour: str
    is_named: bool


@dataclass(frozen=True)
class Bar:
    """`gap_percent`: how much later than the first process on its host it begins. `total`: when the first step ended,
    or where it stands.
    """

    name: str
    total: str
    gap_percent: float
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Timeline:
    bars: tuple[Bar, ...]
    legend: tuple[Segment, ...]
    caption: str


def timeline(starts: Sequence[RankStart]) -> Timeline | None:
    """None if nothing was recorded."""
    if not starts:
        return None
    shown = slowest(starts)
    ends = [stage.end_s or stage.begin_s for start in shown for stage in start.stages]
    scale_s = max(ends) * 1.02 or 1.0
    names = dict.fromkeys(stage.name for start in shown for stage in start.stages)
    legend = tuple(Segment(name, name, 0.0, COLOURS.get(name, _OTHER), is_named=False) for name in in_order(names))
    return Timeline(tuple(_bar(start, scale_s) for start in shown), legend, _caption(starts, shown))


def slowest(starts: Sequence[RankStart]) -> list[RankStart]:
    """All in order of ranks; of many the slowest first, before them those whose first step has not ended."""
    if len(starts) <= MAX_NUM_RANKS:
        return list(starts)
    return sorted(starts, key=lambda one: (one.end_s is not None, -(one.end_s or 0.0)))[:MAX_NUM_RANKS]


def in_order(names: Iterable[str]) -> list[str]:
    """The stages in the order in which they come; of other versions' stages nothing is known, they come last."""
    order = list(COLOURS)
    return sorted(names, key=lambda name: order.index(name) if name in COLOURS else len(order))


def standing(start: RankStart) -> str:
    """When the first step ended, or the stage that has not ended."""
    return f"in {start.stages[-1].name}" if start.end_s is None else f"{start.end_s:.2f} s"


def _bar(start: RankStart, scale_s: float) -> Bar:
    segments = (_segment(stage, scale_s) for stage in start.stages)
    return Bar(
        f"rank {start.rank}",
        standing(start),
        100 * start.begin_s / scale_s,
        tuple(segment for segment in segments if segment.percent > 0),
    )


def _segment(stage: Stage, scale_s: float) -> Segment:
    percent = 100 * (stage.seconds or 0.0) / scale_s
    text = f"{stage.name} {stage.seconds or 0.0:.2f} s, from {stage.begin_s:.2f} s"
    return Segment(stage.name, text, percent, COLOURS.get(stage.name, _OTHER), is_named=percent > _NAMED_PERCENT)


def _caption(starts: Sequence[RankStart], shown: Sequence[RankStart]) -> str:
    ended = [start.end_s for start in starts if start.end_s is not None]
    said = []
    if len(shown) < len(starts):
        said.append(f"The slowest {len(shown)} of {counted(len(starts), 'rank')}.")
    if len(ended) < len(starts):
        said.append(f"Of {counted(len(starts) - len(ended), 'rank')} no end of a first step is recorded.")
    if len(ended) > MAX_NUM_RANKS:
        said.append(f"The first step ended after {statistics.median(ended):.2f} s (median).")
    said.append("Seconds count from the first process of the run on the rank's host, because hosts share no clock.")
    return " ".join(said)
