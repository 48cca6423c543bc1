"""Which files of a run's folder hold whose memory records, and reading them: once, line by line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.records import (
    DeviceSample,
    LeftOut,
    MemoryRecord,
    host_memory_file,
    memory_file,
    read_values,
    samples_file,
)
from dist_trainer.report.reading.gathered import Gathered

Take = Callable[[Gathered, Mapping[str, Any]], None]


@dataclass(frozen=True)
class FileGroup:
    """Files that are read together: those of one rank, of one watched GPU, or of all ranks of a host. For a host's
    files `source` and `rank` are None, because each line names its rank.
    """

    samples: Path
    records: Path | None
    source: str | None
    rank: int | None


def find_files(records_dir: Path) -> list[FileGroup]:
    """The groups of files in a records folder: ranks, then hosts, by number, then the sources of a watched program."""
    numbers: dict[str, set[int]] = {"rank": set(), "host": set()}
    others: set[str] = set()
    for path in records_dir.glob("memory-*.jsonl"):
        name = path.name.removeprefix("memory-").removesuffix(".jsonl").removeprefix("samples-")
        numbered = re.fullmatch(r"(rank|host)-([0-9]+)", name)
        if numbered is None:
            others.add(name)
        else:
            numbers[numbered.group(1)].add(int(numbered.group(2)))

    def group(name: str, records: str | None, source: str | None, rank: int | None) -> FileGroup:
        return FileGroup(records_dir / samples_file(name), records_dir / records if records else None, source, rank)

    return [
        *(group(f"rank-{number}", memory_file(number), f"rank-{number}", number) for number in sorted(numbers["rank"])),
        *(group(f"host-{number}", host_memory_file(number), None, None) for number in sorted(numbers["host"])),
        *(group(name, None, name, None) for name in sorted(others)),
    ]


def in_order(source: str) -> tuple[bool, str, int]:
    """Sort key of sources: ranks first, then by number."""
    kind, _, number = source.rpartition("-")
    return kind != "rank", kind if number.isdigit() else source, int(number) if number.isdigit() else 0


def first_time_s(groups: Iterable[FileGroup]) -> float | None:
    """The time of the earliest record by the wall clock, at which the charts begin."""
    firsts = []
    for group in groups:
        for path, kind, _ in _files(group):
            first = next(read_values(path, kind), None)
            if first is not None:
                firsts.append(float(first["time_s"]))
    return min(firsts, default=None)


def gather(
    group: FileGroup, origin_s: float, phase_starts: Sequence[tuple[int, str]], left_out: LeftOut | None = None
) -> dict[str, Gathered]:
    """What the files hold, by source. `phase_starts`: each phase's first step and name, in order. Into `left_out` goes
    how many damaged lines each file has.
    """
    if group.source is not None:
        only = Gathered(group.rank, origin_s, phase_starts)
        for path, kind, take in _files(group):
            for values in read_values(path, kind, left_out):
                take(only, values)
        return {group.source: only}
    by_rank: dict[int, Gathered] = {}
    for path, kind, take in _files(group):
        num_nobodys = 0
        for values in read_values(path, kind, left_out):
            rank = values["rank"]
            if rank is None:
                num_nobodys += 1
                continue
            of_rank = by_rank.get(rank)
            if of_rank is None:
                of_rank = by_rank[rank] = Gathered(rank, origin_s, phase_starts)
            take(of_rank, values)
        if left_out is not None and num_nobodys:
            left_out[path] = left_out.get(path, 0) + num_nobodys
    return {f"rank-{rank}": of_rank for rank, of_rank in by_rank.items()}


def _files(group: FileGroup) -> Iterator[tuple[Path, type[DeviceSample] | type[MemoryRecord], Take]]:
    """Each file with the type of its records and the method that takes them."""
    yield group.samples, DeviceSample, Gathered.take_sample
    if group.records is not None:
        yield group.records, MemoryRecord, Gathered.take_record
