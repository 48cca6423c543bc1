from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dist_trainer.cluster.hostfile import (
    has_byte_order_mark,
    parse_hostfile,
    read_hostfile,
    render_openmpi_hostfile,
)
from dist_trainer.cluster.topology import Host, Topology, is_own_name, render_include
from dist_trainer.errors import UserError

SHIPPED = sorted((Path(__file__).parents[2] / "hostfiles").iterdir())
NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,10}[A-Za-z0-9])?", fullmatch=True)
TOPOLOGIES = st.dictionaries(NAMES, st.integers(1, 64), min_size=1, max_size=20).map(
    lambda slots: Topology(tuple(Host(name, tuple(range(count))) for name, count in slots.items()))
)
JUNK = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=12)


@st.composite
def parts_of_a_topology(draw: st.DrawFn) -> tuple[Topology, Topology]:
    """A whole topology, and some of its slots in the same order."""
    whole = draw(TOPOLOGIES)
    kept = [
        Host(host.name, tuple(slot for slot in host.slots if draw(st.booleans())))
        for host in draw(st.sets(st.sampled_from(whole.hosts), min_size=1).map(lambda some: sorted(some, key=str)))
    ]
    by_name = {host.name: host for host in kept if host.slots}
    assume(by_name)
    return whole, Topology(tuple(by_name[host.name] for host in whole.hosts if host.name in by_name))


@st.composite
def hostfiles(draw: st.DrawFn) -> tuple[list[str], Topology]:
    """The lines of a hostfile with what people write around the hosts, and what they mean."""
    meant = draw(TOPOLOGIES)
    blank, space = st.sampled_from(["", "  ", "\t", "# slots=3", "\t#"]), st.sampled_from([" ", "  ", "\t"])
    lines = []
    for host in meant.hosts:
        lines += draw(st.lists(blank, max_size=2))
        comment = draw(st.sampled_from(["", " ", " #", "\t# h9 slots=1"]))
        lines.append(f"{draw(st.sampled_from(['', ' ']))}{host.name}{draw(space)}slots={host.num_slots}{comment}")
    return lines, meant


def topology(**slots: int) -> Topology:
    return Topology(tuple(Host(name, tuple(range(count))) for name, count in slots.items()))


@given(TOPOLOGIES)
def test_a_topology_survives_being_written_and_read(original: Topology) -> None:
    assert parse_hostfile(render_openmpi_hostfile(original), where="hf") == original


@given(TOPOLOGIES)
def test_including_everything_changes_nothing(original: Topology) -> None:
    assert original.filter(include=render_include(original)) == original


@given(parts_of_a_topology())
def test_a_part_survives_being_written_as_include_and_taken_from_the_hostfile(
    both: tuple[Topology, Topology],
) -> None:
    whole, part = both
    read = parse_hostfile(render_openmpi_hostfile(whole), where="hf")
    assert read.filter(include=render_include(part)) == part


@given(parts_of_a_topology())
def test_excluding_the_rest_leaves_the_part(both: tuple[Topology, Topology]) -> None:
    whole, part = both
    kept = {host.name: host.slots for host in part.hosts}
    rest = [
        Host(host.name, tuple(slot for slot in host.slots if slot not in kept.get(host.name, ())))
        for host in whole.hosts
    ]
    left_out = Topology(tuple(host for host in rest if host.slots))
    assume(left_out.hosts)
    assert whole.filter(exclude=render_include(left_out)) == part


@given(hostfiles())
def test_whatever_stands_around_the_hosts_they_are_read(written: tuple[list[str], Topology]) -> None:
    lines, meant = written
    assert parse_hostfile("\n".join(lines), where="hf") == meant


@given(TOPOLOGIES, JUNK, st.integers(0))
def test_junk_behind_a_host_is_an_error_with_its_line(original: Topology, junk: str, place: int) -> None:
    # A comment behind a space, or more digits of the number, are no junk.
    assume(junk.strip(" \t") and not re.match(r"[0-9]*[ \t]+#|[0-9]+[ \t]*$", junk))
    lines = render_openmpi_hostfile(original).splitlines()
    number = place % len(lines)
    lines[number] += junk
    with pytest.raises(UserError) as caught:
        parse_hostfile("\n".join(lines), where="hf")
    assert caught.value.where == f"hf:{number + 1}"


@given(hostfiles(), st.data())
def test_a_host_that_stands_twice_and_one_without_slots_are_errors_with_their_line(
    written: tuple[list[str], Topology], data: st.DataObject
) -> None:
    lines, meant = written
    name = data.draw(st.sampled_from(meant.hosts)).name
    for wrong in (f"{name} slots=1", f"{name}x-new-0 slots=0"):
        with pytest.raises(UserError) as caught:
            parse_hostfile("\n".join([*lines, wrong]), where="hf")
        assert caught.value.where == f"hf:{len(lines) + 1}"


@given(hostfiles(), st.integers(0, 2000), st.data())
def test_a_slot_that_does_not_exist_is_an_error_with_the_line_of_its_host(
    written: tuple[list[str], Topology], slot: int, data: st.DataObject
) -> None:
    lines, meant = written
    host = data.draw(st.sampled_from(meant.hosts))
    assume(slot not in host.slots)
    (line,) = (number for number, line in enumerate(lines, 1) if re.match(rf"\s*{re.escape(host.name)}\s", line))
    with pytest.raises(UserError, match=f"has no slot {slot}") as caught:
        parse_hostfile("\n".join(lines), where="hf").filter(include=f"{host.name}:0,{slot}")
    assert f"(hf:{line})" in str(caught.value)


def test_an_unknown_host_among_a_thousand_is_told_in_a_few_words() -> None:
    whole = Topology(tuple(Host(f"node{number}", (0,)) for number in range(1000)))
    with pytest.raises(UserError, match="no host 'nod7'") as caught:
        whole.filter(include="nod7")
    assert caught.value.expected is not None and caught.value.expected.endswith("node7 and 992 more")
    assert caught.value.hint == "did you mean 'node7'?"


def test_comments_and_blank_lines() -> None:
    text = "# hosts\n\n  h1   slots=2  # two\nh2\tslots=1\n   # end\n"
    assert parse_hostfile(text, where="hf") == topology(h1=2, h2=1)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("h1 slots=2 max_slots=1", 1, "no more slots than"),
        ("h1 slots=2 ip=10.0.0.1", 1, "not understood"),
        ("\nh1", 2, "only mpirun"),
        ("h1:2", 1, "only mpirun"),
        ("h1 cpu=2", 1, "not understood"),
        ("fd00::1 slots=2", 1, "IPv6"),
        ("root@fe80::1%eth0 slots=2", 1, "IPv6"),
        ("[fd00::1]:2", 1, "IPv6"),
        ("h1 slots=two", 1, "not understood"),
        ("h1 slots = 2", 1, "not understood"),
        ("h1 slots=-1", 1, "not understood"),
        ("h1 slots=2#", 1, "not understood"),
        ("h1 slots=\u0662", 1, "not understood"),
        ("h1\u00a0slots=2", 1, "not understood"),
        (f"h1 slots={'9' * 5000}", 1, "not understood"),
        ("h1 slots=0", 1, "at least one slot"),
        ("h1 slots=999999999", 1, "at least one slot"),
        ("# x\nh1 slots=1\nh1 slots=2", 3, "stands twice"),
        ("-oProxyCommand=x slots=1", 1, "not a host's name"),
        ("-l@h1 slots=1", 1, "not a user's name"),
        ("a@b@h1 slots=1", 1, "not a user's name"),
        ("me@-h1 slots=1", 1, "not a host's name"),
        ("h1 slots=1\nme@h1 slots=1", 2, "stands twice"),
    ],
)
def test_a_line_that_is_not_understood_is_named(text: str, line: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_hostfile(text, where="hostfiles/x")
    assert caught.value.where == f"hostfiles/x:{line}"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("h1", "h1 slots=N"),
        ("h1:3", "h1 slots=3"),
        ("h1 cpu=3", "write 'h1 slots=3'"),
        ("h1 slots = 3", "write 'h1 slots=3'"),
        ("h1 np=3", "write 'h1 slots=3'"),
    ],
)
def test_of_other_grammars_the_form_to_write_is_said(text: str, form: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_hostfile(text, where="hf")
    assert form in str(caught.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("h1\nh2", {"h1": 1, "h2": 1}),
        ("h1:2\nh2:3", {"h1": 2, "h2": 3}),
        # As Open MPI and Hydra count them: a slot a line.
        ("h1\nh2 # the other\nh1\nh2\nh1", {"h1": 3, "h2": 2}),
        ("h1:2\nh1\n", {"h1": 3}),
        ("h1 slots=2 max-slots=4\nh2 slots=1 max_slots=1\nh3", {"h1": 2, "h2": 1, "h3": 1}),
    ],
)
def test_mpis_forms_are_read_for_mpirun(text: str, meant: dict[str, int]) -> None:
    assert parse_hostfile(text, where="hf", forms="mpi") == topology(**meant)


def test_a_host_of_several_lines_is_said_at_the_first_of_them() -> None:
    (host,) = parse_hostfile("# ours\nh1\nh1\n", where="hf", forms="mpi").hosts
    assert host.place == "hf:2"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        # As Open MPI has it: all slots on one line, or a line a slot.
        ("h1 slots=1\nh1 slots=1", 2, "stands twice"),
        ("h1\nh1 slots=1", 2, "stands twice"),
        ("h1 slots=1\nh1:2", 2, "stands twice"),
        ("h1\nme@h1", 2, "stands twice"),
        ("h1:0", 1, "at least one slot"),
        ("h1:1024\nh1", 2, "at least one slot"),
        ("h1:2:3", 1, "not understood"),
        ("h1:two", 1, "not understood"),
        ("h1 h2", 1, "not understood"),
        ("slots=2", 1, "not understood"),
        ("h1 max-slots=2", 1, "not understood"),
        ("fd00::1", 1, "IPv6"),
        ("-x:2", 1, "not a host's name"),
    ],
)
def test_for_mpirun_too_a_line_that_is_not_understood_is_named(text: str, line: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_hostfile(text, where="hf", forms="mpi")
    assert caught.value.where == f"hf:{line}"


def test_a_user_is_for_ssh_and_not_a_part_of_the_hosts_name() -> None:
    read = parse_hostfile("me@h1 slots=2\nh2 slots=1", where="hf")
    assert [(host.name, host.user, host.login) for host in read.hosts] == [("h1", "me", "me@h1"), ("h2", "", "h2")]
    assert render_include(read.filter(include="h1:1")) == "h1:1"
    assert read.is_local("h1") is False
    assert parse_hostfile("me@h1 slots=2", where="hf").is_local("h1")
    assert is_own_name("me@h1", "h1") and not is_own_name("h1@h2", "h1")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_marks_and_line_ends_of_other_systems_mean_nothing(mark: bytes, end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(mark + end.join([b"h1\tslots=2", b"# more", b"h2 slots=1", b""]))
    assert read_hostfile(path) == topology(h1=2, h2=1)
    assert has_byte_order_mark(path) == bool(mark)


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
        (f"h1:{'9' * 5000}", "", "whole numbers"),
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


def test_open_mpi_is_told_a_number_of_slots_whichever_they_are() -> None:
    part = topology(h1=3).filter(include="h1:1,2")
    assert render_openmpi_hostfile(part) == "h1 slots=2\n"


def test_this_host_by_any_of_its_names() -> None:
    assert topology(localhost=1, **{"127.0.0.1": 1, "n1": 1}).is_local("n1.example.org")
    assert not topology(localhost=1, n2=1).is_local("n1")
