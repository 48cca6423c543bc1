"""Bytes and counts as people write and read them. GB is 10^9 bytes, GiB is 2^30 bytes; the two are never mixed."""

from __future__ import annotations

import math
import re

GB = 10**9
GIB = 2**30
MIB = 2**20
_MOST_DIGITS = 18

_BYTE_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": GB,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": MIB,
    "GIB": GIB,
    "TIB": 2**40,
}


def parse_bytes(text: str) -> int:
    """'2.5 GB' -> 2_500_000_000, '24GiB' -> 25_769_803_776. Raises ValueError without a number and a known unit."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", text)
    unit = _BYTE_UNITS.get(match.group(2).upper()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not an amount of memory; write one like '2.5 GB' or '24 GiB'")
    num_bytes = float(match.group(1)) * unit
    if math.isinf(num_bytes):
        raise ValueError("an amount of memory that is too large")
    return round(num_bytes)


def whole_number(text: str) -> int | None:
    """A whole number from 0 up in plain digits, at most 18 of them, which fits 64 bits; None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


def format_gb(num_bytes: float) -> str:
    return f"{num_bytes / GB:.2f} GB"


def format_bytes(num_bytes: float) -> str:
    """'2.31 GB'; below 0.1 GB in MB: '57.9 MB'."""
    return format_gb(num_bytes) if abs(num_bytes) >= GB / 10 else f"{num_bytes / 10**6:.1f} MB"


def counted(count: int, noun: str) -> str:
    """'1 rank', '2 ranks'; `noun` is a singular whose plural ends in s."""
    return f"1 {noun}" if count == 1 else f"{count} {noun}s"


def format_count(count: float) -> str:
    """124439808 -> '124.4M'."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        # A value that rounds up to the next letter gets that letter: 999_999 is 1.0M, not 1000.0K.
        if abs(count) >= 0.99995 * size:
            return f"{count / size:.1f}{letter}"
    return f"{count:.3g}"


def format_duration(seconds: float) -> str:
    """83.4 -> '1m 23s'."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"
