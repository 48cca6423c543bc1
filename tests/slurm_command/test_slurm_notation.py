from __future__ import annotations

import math

import pytest
from shown import COMPLETED

from dist_trainer.slurm.notation import (
    Gpus,
    format_time,
    parse_array,
    parse_gpu_counts,
    parse_gres,
    parse_memory_bytes,
    parse_moment,
    parse_time_s,
    read_fields,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5_400),
        ("12:30", 750),
        ("12:00:00", 43_200),
        ("2-12", 216_000),
        ("1-02:03", 93_780),
        ("1-02:03:04", 93_784),
        ("UNLIMITED", math.inf),
    ],
)
def test_a_time_limit_is_read_as_slurm_reads_it(text: str, seconds: float) -> None:
    assert parse_time_s(text) == seconds


@pytest.mark.parametrize("text", ["", "noon", "1:2:3:4", "-5", "1-", "12:00:00h"])
def test_what_is_no_time_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_time_s(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(43_200, "12 h"), (5_400, "1 h 30 min"), (90, "1 min 30 s"), (0, "0 s"), (86_400, "24 h"), (math.inf, "no limit")],
)
def test_a_time_in_words(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("8", ((None, 8),)),
        ("a100:8", (("a100", 8),)),
        ("a100:4,h100:2", (("a100", 4), ("h100", 2))),
        ("1g.5gb:7", (("1g.5gb", 7),)),
        ("a100", (("a100", 1),)),
    ],
)
def test_gpus_of_the_options(text: str, gpus: tuple[tuple[str | None, int], ...]) -> None:
    assert parse_gpu_counts(text) == Gpus(gpus)


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("gpu:2", ((None, 2),)),
        ("gpu", ((None, 1),)),
        ("gpu:a100:8(S:0-1),nvme:1", (("a100", 8),)),
        ("lustre,gpu:a100:4,gpu:h100:4", (("a100", 4), ("h100", 4))),
        ("gres:gpu:2", ((None, 2),)),
        ("(null)", ()),
        ("", ()),
    ],
)
def test_gpus_among_generic_resources(text: str, gpus: tuple[tuple[str | None, int], ...]) -> None:
    assert parse_gres(text) == Gpus(gpus)


@pytest.mark.parametrize("text", ["", "-1", ":8", "a100:many"])
def test_what_is_no_number_of_gpus_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a number of GPUs"):
        parse_gpu_counts(text)


def test_a_node_holds_what_is_asked_of_it() -> None:
    node = Gpus((("a100", 4), ("h100", 4)))
    assert node.holds(Gpus(((None, 8),)))
    assert not node.holds(Gpus(((None, 9),)))
    assert node.holds(Gpus((("h100", 4),)))
    assert not node.holds(Gpus((("h100", 5),)))
    assert not node.holds(Gpus((("v100", 1),)))


@pytest.mark.parametrize(
    ("text", "tasks"),
    [("0-3", (0, 1, 2, 3)), ("1,3,5", (1, 3, 5)), ("0-15:4", (0, 4, 8, 12)), ("0-3,2%2", (0, 1, 2, 3)), ("7", (7,))],
)
def test_the_tasks_of_an_array(text: str, tasks: tuple[int, ...]) -> None:
    assert parse_array(text) == tasks


@pytest.mark.parametrize("text", ["", "3-0", "0-3:0", "a", "0-3%", "1,,2", "0-9999999"])
def test_what_is_no_array_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an array|more than"):
        parse_array(text)


def test_memory() -> None:
    assert parse_memory_bytes("64G") == 64 * 2**30
    assert parse_memory_bytes("4000") == 4000 * 2**20
    with pytest.raises(ValueError, match="64G"):
        parse_memory_bytes("64 GB")


def test_fields_may_hold_spaces_and_more_signs_of_equality() -> None:
    fields = read_fields(COMPLETED)
    assert fields["JobName"] == "a b"
    assert fields["StdOut"] == "/work/a b-1.out"
    assert fields["CPUs/Task"] == "1"
    assert fields["TresPerNode"] == "gres:gpu:2"
    assert read_fields("A=1 TRES=cpu=8,mem=8000M B=")["TRES"] == "cpu=8,mem=8000M"
    assert read_fields("A=1 B=")["B"] == ""


def test_a_moment_is_on_this_hosts_clock() -> None:
    later, sooner = parse_moment("2026-11-24T18:15:30"), parse_moment("2026-11-24T18:15:00")
    assert later is not None and sooner is not None
    assert later - sooner == 30
    assert parse_moment("Unknown") is None


@pytest.mark.parametrize("text", ["9" * 320, "1-" + "9" * 5000, "²", "٣:00:00", "1:" + "9" * 320])
def test_a_time_that_no_clock_has_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a time as SLURM writes it"):
        parse_time_s(text)


@pytest.mark.parametrize("text", ["0-90000,0-90000", "0-3%²", "²", "9" * 5000])
def test_an_array_that_no_cluster_has_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"array|tasks"):
        parse_array(text)
