"""Which files of a run's folder hold what of whose memory, and how they are read: once, a line at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.records import host_memory_file, memory_file, read_values, samples_file
from dist_trainer.report.reading.gathered import Gathered


@dataclass(frozen=True)
class FileGroup:
    """Files that are read together: of one rank or one watched GPU, or of all ranks of a host. `source` and `rank` are
    None for a host's, whose lines say the rank.
    """

    samples: Path
    records: Path | None
    source: str | None
    rank: int | None


def find_files(records_dir: Path) -> list[FileGroup]:
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
    """Sorts sources: ranks first, and all by their number."""
    kind, _, number = source.rpartition("-")
    return kind != "rank", kind if number.isdigit() else source, int(number) if number.isdigit() else 0


def first_time_s(groups: Iterable[FileGroup]) -> float | None:
    """When the first record of all was made."""
    firsts = []
    for group in groups:
        for path in (group.samples, group.records):
            first = next(read_values(path), None) if path is not None else None
            if first is not None:
                firsts.append(float(first["time_s"]))
    return min(firsts, default=None)


def gather(group: FileGroup, origin_s: float, marks_s: Sequence[float]) -> dict[str, Gathered]:
    """What the files hold, by source. `marks_s` are the moments at which phases begin, in order."""
    files = ((group.samples, Gathered.take_sample), (group.records, Gathered.take_record))
    if group.source is not None:
        only = Gathered(group.rank, origin_s, marks_s)
        for path, take in files:
            for values in read_values(path) if path is not None else ():
                take(only, values)
        return {group.source: only}
    by_rank: dict[int, Gathered] = {}
    for path, take in files:
        for values in read_values(path) if path is not None else ():
            rank = values["rank"]
            of_rank = by_rank.get(rank)
            if of_rank is None:
                of_rank = by_rank[rank] = Gathered(rank, origin_s, marks_s)
            take(of_rank, values)
    return {f"rank-{rank}": of_rank for rank, of_rank in by_rank.items()}
