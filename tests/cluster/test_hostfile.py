from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.cluster.hostfile import parse_hostfile, read_hostfile, render_hostfile, render_openmpi_hostfile
from dist_trainer.cluster.topology import Host, Topology, render_include
from dist_trainer.errors import UserError

SHIPPED = sorted((Path(__file__).parents[2] / "hostfiles").iterdir())
NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,10}[A-Za-z0-9])?", fullmatch=True)
TOPOLOGIES = st.dictionaries(NAMES, st.integers(1, 64), min_size=1, max_size=20).map(
    lambda slots: Topology(tuple(Host(name, tuple(range(count))) for name, count in slots.items()))
)


def topology(**slots: int) -> Topology:
    return Topology(tuple(Host(name, tuple(range(count))) for name, count in slots.items()))


@given(TOPOLOGIES)
def test_a_topology_survives_being_written_and_read(original: Topology) -> None:
    assert parse_hostfile(render_hostfile(original), where="hf") == original


@given(TOPOLOGIES)
def test_including_everything_changes_nothing(original: Topology) -> None:
    assert original.filter(include=render_include(original)) == original


def test_comments_and_blank_lines() -> None:
    text = "# hosts\n\n  h1   slots=2  # two\nh2\tslots=1\n   # end\n"
    assert parse_hostfile(text, where="hf") == topology(h1=2, h2=1)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("h1 slots=2 max_slots=4", 1, "not understood"),
        ("\nh1", 2, "not understood"),
        ("h1 slots=two", 1, "not understood"),
        ("h1 slots = 2", 1, "not understood"),
        ("h1 slots=-1", 1, "not understood"),
        ("h1 slots=2#", 1, "not understood"),
        ("h1 slots=0", 1, "at least one slot"),
        ("h1 slots=999999999", 1, "at least one slot"),
        ("# x\nh1 slots=1\nh1 slots=2", 3, "stands twice"),
        ("-oProxyCommand=x slots=1", 1, "not a host's name"),
        ("me@h1 slots=1", 1, "not a host's name"),
    ],
)
def test_a_line_that_is_not_understood_is_named(text: str, line: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_hostfile(text, where="hostfiles/x")
    assert caught.value.where == f"hostfiles/x:{line}"


@pytest.mark.parametrize("text", ["", "\n# nothing\n"])
def test_a_hostfile_without_a_host_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="names no host"):
        parse_hostfile(text, where="hf")


def test_a_hostfile_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read") as caught:
        read_hostfile(tmp_path / "none")
    assert caught.value.where == str(tmp_path / "none")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_hostfiles(path: Path) -> None:
    assert read_hostfile(path).num_ranks == {"localhost": 2, "a100": 16}[path.name]


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ("h2", "", "h2:0,1,2"),
        ("h2:2,0@h1", "", "h1:0,1@h2:0,2"),
        ("", "h1", "h2:0,1,2"),
        ("", "h2:1", "h1:0,1@h2:0,2"),
        ("", "", "h1:0,1@h2:0,1,2"),
    ],
)
def test_include_and_exclude(include: str, exclude: str, left: str) -> None:
    assert render_include(topology(h1=2, h2=3).filter(include=include, exclude=exclude)) == left


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        ("h3", "", "no host 'h3'"),
        ("h1:2", "", "no slot 2"),
        ("", "h1:2", "no slot 2"),
        ("h1:", "", "whole numbers"),
        ("h1:a", "", "whole numbers"),
        ("h1@h1:0", "", "named twice"),
        ("", "h1@h2", "No slot is left"),
        ("h1", "h2", "cannot be used together"),
    ],
)
def test_filters_that_cannot_be_meant(include: str, exclude: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        topology(h1=2, h2=3).filter(include=include, exclude=exclude)


def test_ranks_a_host_are_at_most_its_slots() -> None:
    assert render_include(topology(h1=2, h2=3).first_slots(1)) == "h1:0@h2:0"
    with pytest.raises(UserError, match="more than the slots of h1"):
        topology(h1=2, h2=3).first_slots(3)


def test_only_open_mpi_can_be_told_of_left_out_slots() -> None:
    part = topology(h1=3).filter(include="h1:1,2")
    assert render_openmpi_hostfile(part) == "h1 slots=2\n"
    with pytest.raises(ValueError, match="h1"):
        render_hostfile(part)


def test_this_host_by_any_of_its_names() -> None:
    assert topology(localhost=1, **{"127.0.0.1": 1, "n1": 1}).is_local("n1.example.org")
    assert not topology(localhost=1, n2=1).is_local("n1")
