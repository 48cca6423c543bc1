"""A curve of any length in bounded room: the lowest and the highest value of each of a few hundred stretches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

DEFAULT_NUM_BUCKETS = 400


@dataclass(frozen=True)
class Bucket:
    """One stretch of a curve, from `start` on; `mean` is over the values in it, `last` the value with which it ends."""

    start: float
    low: float
    high: float
    mean: float
    last: float


class Envelope:
    """Takes points in any order and keeps at most `num_buckets` stretches of equal width, from `origin` on.

    A stretch grows by doubling, so all stretches of all envelopes of one origin and first width fit one another.
    Points before the origin count as of the first stretch.
    """

    def __init__(self, *, origin: float, width: float, num_buckets: int = DEFAULT_NUM_BUCKETS) -> None:
        if width <= 0 or num_buckets < 2:
            raise ValueError("an envelope has stretches of a width above 0, and at least 2 of them")
        self.origin = origin
        self.width = width
        self.num_buckets = num_buckets
        # For each stretch by its number: lowest, highest, sum, count, last.
        self._buckets: dict[int, list[float]] = {}

    def add(self, x: float, value: float) -> None:
        number = int((x - self.origin) / self.width)
        bucket = self._buckets.get(number)
        if bucket is not None:
            if value < bucket[0]:
                bucket[0] = value
            elif value > bucket[1]:
                bucket[1] = value
            bucket[2] += value
            bucket[3] += 1
            bucket[4] = value
            return
        number = max(0, number)
        while number >= self.num_buckets:
            self._double()
            number = int((x - self.origin) / self.width)
        known = self._buckets.get(number)
        mine = [value, value, value, 1, value]
        self._buckets[number] = mine if known is None else _joined(known, mine)

    def buckets(self) -> list[Bucket]:
        return [
            Bucket(self.origin + number * self.width, low, high, total / count, last)
            for number, (low, high, total, count, last) in sorted(self._buckets.items())
        ]

    def widened(self, width: float) -> Envelope:
        """The same curve in stretches of this width, which is this one's doubled some times."""
        other = Envelope(origin=self.origin, width=self.width, num_buckets=self.num_buckets)
        other._buckets = {number: list(bucket) for number, bucket in self._buckets.items()}
        while other.width < width:
            other._double()
        return other

    def _double(self) -> None:
        self.width *= 2
        halves = sorted(self._buckets.items())
        self._buckets = {}
        for number, bucket in halves:
            known = self._buckets.get(number // 2)
            self._buckets[number // 2] = bucket if known is None else _joined(known, bucket)


def joined(envelopes: Iterable[Envelope]) -> list[Bucket]:
    """Many curves as one: in each stretch the lowest and the highest of all. A curve without a point in a stretch
    between its first and its last stays where it was. They share an origin and a first width.
    """
    found = [envelope for envelope in envelopes if envelope._buckets]
    if not found:
        return []
    width = max(envelope.width for envelope in found)
    buckets: dict[int, list[float]] = {}
    origin = found[0].origin
    for envelope in found:
        own = envelope.widened(width)._buckets
        held = 0.0
        for number in range(min(own), max(own) + 1):
            bucket = own.get(number, [held, held, held, 1.0, held])
            held = bucket[4]
            known = buckets.get(number)
            mine = [bucket[0], bucket[1], bucket[2] / bucket[3], 1, held]
            buckets[number] = mine if known is None else _joined(known, mine)
    return [
        Bucket(origin + number * width, low, high, total / count, last)
        for number, (low, high, total, count, last) in sorted(buckets.items())
    ]


def _joined(one: list[float], other: list[float]) -> list[float]:
    return [min(one[0], other[0]), max(one[1], other[1]), one[2] + other[2], one[3] + other[3], other[4]]
