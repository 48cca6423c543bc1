"""The offset between another host's clock and this one's, computed as NTP does, so that the round trip cancels out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class RoundTrip:
    """When the question left and when its answer came (this host's clock), and the other host's clock in between."""

    sent_s: float
    there_s: float
    received_s: float


@dataclass(frozen=True)
class Offset:
    """The other clock is ahead of this one by `seconds` (negative: behind), to within `error_s`."""

    seconds: float
    error_s: float


def offset_of(trips: Iterable[RoundTrip]) -> Offset | None:
    """The offset from the shortest round trip, which has the smallest error. None without round trips."""
    quickest = min(trips, key=lambda trip: trip.received_s - trip.sent_s, default=None)
    if quickest is None:
        return None
    middle_s = (quickest.sent_s + quickest.received_s) / 2
    return Offset(quickest.there_s - middle_s, (quickest.received_s - quickest.sent_s) / 2)
