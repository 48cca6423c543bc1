from __future__ import annotations

import pytest

from dist_trainer.units import (
    GB,
    GIB,
    counted,
    format_bytes,
    format_count,
    format_duration,
    format_gb,
    parse_bytes,
    whole_number,
)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("2.5 GB", 2_500_000_000),
        ("24GiB", 25_769_803_776),
        ("24 gib", 25_769_803_776),
        ("  1.5 KB ", 1500),
        ("1.5 KiB", 1536),
        ("7 MB", 7_000_000),
        ("7 MiB", 7_340_032),
        ("1 TB", 10**12),
        ("1 TiB", 2**40),
        ("12 B", 12),
        ("0.1 GB", 100_000_000),
    ],
)
def test_bytes_are_read_with_their_unit(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "4", "GB", "4 G", "four GB", "-1 GB", "1e9 B", "4 GB more", "1,5 GB", "1.GB"])
def test_what_has_no_known_unit_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an amount of memory; write one like '2\.5 GB'"):
        parse_bytes(text)


def test_below_a_tenth_of_a_gb_bytes_are_shown_in_mb() -> None:
    texts = [format_bytes(number) for number in (2_310_000_000, 100_000_000, 57_936_436, -5_000_000, 0)]
    assert texts == ["2.31 GB", "0.10 GB", "57.9 MB", "-5.0 MB", "0.0 MB"]


def test_gb_and_gib_are_never_mixed_up() -> None:
    assert (GB, GIB) == (1_000_000_000, 1_073_741_824)
    assert format_gb(4 * GB) == "4.00 GB"
    assert format_gb(4 * GIB) == "4.29 GB"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0K"),
        (950_000, "950.0K"),
        (999_949, "999.9K"),
        (124_439_808, "124.4M"),
        (-2_500_000, "-2.5M"),
        (1.5e9, "1.5B"),
        (3e12, "3.0T"),
    ],
)
def test_counts_are_shown_with_one_decimal_and_a_letter(count: float, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(("count", "text"), [(999_950, "1.0M"), (999_999, "1.0M"), (999_999_999, "1.0B")])
def test_a_count_that_rounds_up_to_the_next_letter_has_it(count: float, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0s"),
        (59.94, "59.9s"),
        (59.96, "1m 00s"),
        (60, "1m 00s"),
        (83.4, "1m 23s"),
        (3599.4, "59m 59s"),
        (3599.6, "1h 00m"),
        (3 * 3600 + 62, "3h 01m"),
        (90_000, "25h 00m"),
    ],
)
def test_durations_are_shown_in_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("007", 7), ("9" * 18, int("9" * 18)), ("", None), ("-1", None), ("1 ", None)]
)
def test_a_whole_number(text: str, number: int | None) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize("text", ["²", "٣", "9" * 19, "9" * 5000, "1.0", "0x1"])
def test_what_is_no_whole_number(text: str) -> None:
    assert whole_number(text) is None


def test_one_of_a_thing_is_singular() -> None:
    assert [counted(number, "rank") for number in (0, 1, 2)] == ["0 ranks", "1 rank", "2 ranks"]
