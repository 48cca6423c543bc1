"""How far another host's clock is from this one's, as NTP finds it: the way there and back does not count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class RoundTrip:
    """When the question left and the answer came, on this host's clock, and what the other's said in between."""

    sent_s: float
    there_s: float
    received_s: float


@dataclass(frozen=True)
class Offset:
    """The other clock is ahead of this one by `seconds`, give or take `error_s`."""

    seconds: float
    error_s: float


def offset_of(trips: Iterable[RoundTrip]) -> Offset | None:
    """From the quickest of the round trips: it leaves least room for error. None without any."""
    quickest = min(trips, key=lambda trip: trip.received_s - trip.sent_s, default=None)
    if quickest is None:
        return None
    middle_s = (quickest.sent_s + quickest.received_s) / 2
    return Offset(quickest.there_s - middle_s, (quickest.received_s - quickest.sent_s) / 2)
