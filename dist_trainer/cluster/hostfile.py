"""DeepSpeed's hostfile grammar, read strictly: `host slots=N`, blank lines, and comments after `#`."""

from __future__ import annotations

import re
from pathlib import Path

from dist_trainer.cluster.topology import Host, Topology
from dist_trainer.errors import UserError

_LINE = re.compile(r"(\S+)[ \t]+slots=([0-9]{1,9})")
_COMMENT = re.compile(r"(^|[ \t])#.*")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_MOST_SLOTS = 1024


def read_hostfile(path: Path) -> Topology:
    """Raises UserError when the file cannot be read or a line is not understood, naming the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("The hostfile cannot be read.", where=str(path), found=str(error)) from error
    return parse_hostfile(text, where=str(path))


def parse_hostfile(text: str, *, where: str) -> Topology:
    """The hosts in the order of their lines. Raises UserError, with where='WHERE:LINE', for anything else."""
    hosts: list[Host] = []
    first_lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        content = _COMMENT.sub("", line).strip(" \t")
        if not content:
            continue
        place = f"{where}:{number}"
        host = _parse_line(content, place)
        if host.name in first_lines:
            raise UserError(
                f"The host {host.name} stands twice in the hostfile.",
                where=place,
                found=content,
                hint=f"give it one line with all its slots; the first is line {first_lines[host.name]}",
            )
        first_lines[host.name] = number
        hosts.append(host)
    if not hosts:
        raise UserError("The hostfile names no host.", where=where, expected="at least one line 'host slots=N'")
    return Topology(tuple(hosts))


def render_hostfile(topology: Topology) -> str:
    """The text that `parse_hostfile` reads back. `slots=N` means the slots 0 ... N-1: raises ValueError for others."""
    for host in topology.hosts:
        if not host.has_first_slots:
            raise ValueError(f"a hostfile cannot say that of {host.name} only the slots {host.slots} are used")
    return render_openmpi_hostfile(topology)


def render_openmpi_hostfile(topology: Topology) -> str:
    """Open MPI's hostfile counts slots and never names them, so any topology can be written."""
    return "".join(f"{host.name} slots={host.num_slots}\n" for host in topology.hosts)


def _parse_line(content: str, place: str) -> Host:
    match = _LINE.fullmatch(content)
    if match is None:
        raise UserError(
            "A line of the hostfile is not understood.", where=place, found=content, expected="host slots=N"
        )
    name, num_slots = match.group(1), int(match.group(2))
    if _HOST_NAME.fullmatch(name) is None:
        raise UserError("This is not a host's name.", where=place, found=name, expected="a name or an IPv4 address")
    if not 1 <= num_slots <= _MOST_SLOTS:
        raise UserError(
            "A host has at least one slot, and one slot is one GPU.",
            where=place,
            found=content,
            expected=f"slots=1 to slots={_MOST_SLOTS}",
            hint="leave the host out, or correct its slots",
        )
    return Host(name, tuple(range(num_slots)), place)
