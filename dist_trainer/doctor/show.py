"""The findings, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dist_trainer.cluster.nodelist import fold_nodelist
from dist_trainer.doctor.examination import Examination
from dist_trainer.doctor.findings import LEVELS, Finding, worst
from dist_trainer.encoding import all_as_utf8
from dist_trainer.units import counted, format_duration

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"ok": "green", "skip": "dim", "warn": "yellow", "fail": "bold red"}
_MOST_HOST_CHARACTERS = 40


def show(findings: list[Finding], exam: Examination, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("", "check", "hosts", "found, and what to do"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        found = Text(finding.found)
        if finding.do is not None:
            found.append(f"\n-> {finding.do}", style="bold")
        level = Text(finding.level, style=_STYLES[finding.level])
        table.add_row(level, Text(finding.check), Text(hosts_text(finding.hosts)), found)
    console.print(table)
    console.print(Text(summary(findings, exam)))


def summary(findings: list[Finding], exam: Examination) -> str:
    counts = Counter(finding.level for finding in findings)
    told = ", ".join(f"{counts[level]} {level}" for level in LEVELS if counts[level])
    hosts = counted(len(exam.hosts), "host")
    return f"\n{hosts}, {counted(exam.num_ranks, 'rank')}: {told}; {format_duration(exam.seconds)}"


def hosts_text(hosts: tuple[str, ...]) -> str:
    """The hosts in SLURM's compressed form, cut if it would fill the screen; `--json` has all of them."""
    text = fold_nodelist(hosts)
    if len(text) <= _MOST_HOST_CHARACTERS:
        return text
    # Cut between names, never within brackets.
    kept = list(hosts)
    while len(kept) > 1 and len(fold_nodelist(kept)) > _MOST_HOST_CHARACTERS:
        kept = kept[: len(kept) * 2 // 3]
    return f"{fold_nodelist(kept)} and {len(hosts) - len(kept)} more"


def dump(findings: list[Finding], exam: Examination) -> str:
    """As JSON. `level` is the worst of all; a finding's `hosts` is empty if it is about all that answered."""
    from pydantic_core import to_json, to_jsonable_python

    everything = {"level": worst(findings), "findings": findings, "examination": exam}
    return to_json(all_as_utf8(to_jsonable_python(everything)), indent=2).decode() + "\n"
