"""Hostfiles, parsed strictly: DeepSpeed's `host slots=N` for every launcher, and the other MPI forms for mpirun only.

Both may have blank lines and comments after `#`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dist_trainer.cluster.topology import Host, Topology
from dist_trainer.errors import UserError

Forms = Literal["deepspeed", "mpi"]

# DeepSpeed too accepts Open MPI's max-slots, and ignores it; so do we: a run never uses more than `slots`.
_LINE = re.compile(r"(\S+)[ \t]+slots=([0-9]{1,9})(?:[ \t]+max[-_]slots=([0-9]{1,9}))?")
# One line per slot (Open MPI, MPICH), or `host:N` (MPICH, Intel MPI).
_MPI_LINE = re.compile(r"([^\s:=]+)(?::([0-9]{1,9}))?")
# Spellings that people use when they mean `slots=N`.
_NEARLY = re.compile(r"(\S+)[ \t]+(?:slots|cpus?|np|ncpus|procs|gpus?)[ \t]*=[ \t]*([0-9]{1,9})", re.IGNORECASE)
_COMMENT = re.compile(r"(^|[ \t])#.*")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_USER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_MOST_SLOTS = 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class _Entry:
    """One line. `login`: host or user@host. `has_slots_key`: it has `slots=`, and thus gives all slots of its host."""

    login: str
    num_slots: int
    has_slots_key: bool


def read_hostfile(path: Path, forms: Forms = "deepspeed") -> Topology:
    """Raises UserError if the file cannot be read, or, naming the line, if a line is not understood.

    A byte-order mark and CR LF line ends are ignored.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("The hostfile cannot be read.", where=str(path), found=str(error)) from error
    return parse_hostfile(text, where=str(path), forms=forms)


def has_byte_order_mark(path: Path) -> bool:
    """Whether the file begins with a byte-order mark, which DeepSpeed takes for a part of the first host's name."""
    with path.open("rb") as file:
        return file.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK


def parse_hostfile(text: str, *, where: str, forms: Forms = "deepspeed") -> Topology:
    """The hosts in the order of their first lines. Raises UserError, with where='WHERE:LINE', for any other line.

    In MPI's forms a host without `slots=` has one slot for each line that names it, or N with `host:N`.
    """
    found: dict[str, tuple[_Entry, int]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        content = _COMMENT.sub("", line).strip(" \t")
        if not content:
            continue
        place = f"{where}:{number}"
        entry = _parse_line(content, place, forms)
        name = entry.login.rpartition("@")[2]
        if name not in found:
            found[name] = entry, number
            continue
        first, first_number = found[name]
        if entry.login != first.login or entry.has_slots_key or first.has_slots_key:
            raise UserError(
                f"The host {name} stands twice in the hostfile.",
                where=place,
                found=content,
                hint=f"give it one line with all its slots; the first is line {first_number}",
            )
        num_slots = _checked(first.num_slots + entry.num_slots, content, place)
        found[name] = _Entry(first.login, num_slots, has_slots_key=False), first_number
    if not found:
        raise UserError("The hostfile names no host.", where=where, expected="at least one line 'host slots=N'")
    return Topology(
        tuple(
            Host(name, tuple(range(entry.num_slots)), f"{where}:{number}", entry.login.rpartition("@")[0])
            for name, (entry, number) in found.items()
        )
    )


def render_openmpi_hostfile(topology: Topology) -> str:
    """Open MPI's hostfile gives a number of slots and never their names, so any topology can be written."""
    return "".join(f"{host.name} slots={host.num_slots}\n" for host in topology.hosts)


def _parse_line(content: str, place: str, forms: Forms) -> _Entry:
    _refuse_ipv6(content, place)
    match = _LINE.fullmatch(content)
    if match is not None:
        login, num_slots = match.group(1), _checked(int(match.group(2)), content, place)
        _check_login(login, place)
        if match.group(3) is not None and int(match.group(3)) < num_slots:
            raise UserError(
                "A host has no more slots than its max-slots.",
                where=place,
                found=content,
                expected=f"max-slots={num_slots} or more",
                hint=f"write '{login} slots={num_slots}': max-slots changes nothing here",
            )
        return _Entry(login, num_slots, has_slots_key=True)
    match = _MPI_LINE.fullmatch(content)
    if match is None:
        nearly = _NEARLY.fullmatch(content)
        raise UserError(
            "A line of the hostfile is not understood.",
            where=place,
            found=content,
            expected="host slots=N" + (", host:N, or host" if forms == "mpi" else ""),
            hint=f"write '{nearly.group(1)} slots={nearly.group(2)}'" if nearly else None,
        )
    login, count = match.groups()
    _check_login(login, place)
    num_slots = _checked(int(count or 1), content, place)
    if forms != "mpi":
        raise UserError(
            "A line of the hostfile is not understood: only mpirun takes hosts in this form.",
            where=place,
            found=content,
            expected=f"{login} slots={count or 'N'}",
            hint=f"write it so, {'' if count else 'N being the number of its GPUs, '}or use --launcher mpirun",
        )
    return _Entry(login, num_slots, has_slots_key=False)


def _checked(num_slots: int, content: str, place: str) -> int:
    if not 1 <= num_slots <= _MOST_SLOTS:
        raise UserError(
            "A host has at least one slot, and one slot is one GPU.",
            where=place,
            found=content,
            expected=f"slots=1 to slots={_MOST_SLOTS}",
            hint="leave the host out, or correct its slots",
        )
    return num_slots


def _check_login(login: str, place: str) -> None:
    user, at, name = login.rpartition("@")
    if at and _USER_NAME.fullmatch(user) is None:
        raise UserError("This is not a user's name.", where=place, found=login, expected="user@host, or the host alone")
    if _HOST_NAME.fullmatch(name) is None:
        raise UserError("This is not a host's name.", where=place, found=login, expected="a name or an IPv4 address")


def _refuse_ipv6(content: str, place: str) -> None:
    word = re.split(r"[ \t]", content.rpartition("@")[2], maxsplit=1)[0]
    address = re.sub(r"^\[(.*)\](:[0-9]+)?$", r"\1", word)
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return
    raise UserError(
        "A host cannot be named by its IPv6 address: launchers read what follows a ':' as slots or a port.",
        where=place,
        found=word,
        expected="a name or an IPv4 address",
        hint=f"give it a name in /etc/hosts of every host ('{address} NAME'), and write the name here",
    )
