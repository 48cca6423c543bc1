"""How the ranks of a run started: the stages of the last start, rank by rank."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.records import START_ENDED, LeftOut, StageRecord, read_records, start_file

FIRST_STEP = "first step"
COMPILE = "compile"


@dataclass(frozen=True)
class Stage:
    """In seconds after `RankStart.zero`. `end_s`: None of a stage that has not ended, as far as is known."""

    name: str
    begin_s: float
    end_s: float | None

    @property
    def seconds(self) -> float | None:
        return None if self.end_s is None else self.end_s - self.begin_s


@dataclass(frozen=True)
class RankStart:
    """The stages follow each other without gaps; a name may come again. Their seconds count from when the first
    process of this start on the rank's host was created, because hosts share no clock.
    """

    rank: int
    host: str
    stages: tuple[Stage, ...]

    @property
    def begin_s(self) -> float:
        return self.stages[0].begin_s

    @property
    def end_s(self) -> float | None:
        """The end of the first step; None if it has not come."""
        return self.stages[-1].end_s

    def seconds_in(self, name: str) -> float | None:
        """All stages of this name together; None without one, and if it has not ended."""
        those = [stage.seconds for stage in self.stages if stage.name == name]
        return sum(filter(None, those)) if those and None not in those else None


def read_starts(records_dir: Path, left_out: LeftOut | None = None) -> tuple[RankStart, ...]:
    """The last start of which anything is recorded, by rank; empty if nothing is."""
    last = []
    for rank in _ranks(records_dir):
        records = list(read_records(records_dir / start_file(rank), StageRecord, left_out))
        if records:
            newest = records[-1]
            last.append([one for one in records if (one.start_id, one.pid) == (newest.start_id, newest.pid)])
    start_id = max((records[0].start_id for records in last), default=0)
    of_start = [records for records in last if records[0].start_id == start_id]
    zeros: dict[str, float] = {}
    for records in of_start:
        begin_s = records[0].monotonic_s
        zeros[records[0].host] = min(begin_s, zeros.get(records[0].host, begin_s))
    found = ((records[0], tuple(_stages(records, zeros[records[0].host]))) for records in of_start)
    return tuple(RankStart(first.rank, first.host, stages) for first, stages in found if stages)


def _ranks(records_dir: Path) -> list[int]:
    names = (re.fullmatch(r"start-rank-([0-9]{1,9})\.jsonl", path.name) for path in records_dir.glob("start-rank-*"))
    return sorted(int(name.group(1)) for name in names if name is not None)


def _stages(records: Sequence[StageRecord], zero_s: float) -> Iterator[Stage]:
    # In order even where a record is damaged in such a way that it can be read.
    moments = list(itertools.accumulate((one.monotonic_s - zero_s for one in records), max))
    for record, begin_s, after, end_s in itertools.zip_longest(records, moments, records[1:], moments[1:]):
        if record.stage == START_ENDED:
            return
        if after is not None and after.stage == START_ENDED and after.compile_s:
            # What was compiled in the first step is drawn at its beginning, though backwards come later.
            compiled_s = min(begin_s + after.compile_s, end_s)
            yield Stage(COMPILE, begin_s, compiled_s)
            begin_s = compiled_s
        yield Stage(record.stage, begin_s, end_s)
