"""An envelope: a curve of any length downsampled to the lowest and highest value in each of some hundred buckets."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_NUM_BUCKETS = 400


@dataclass(frozen=True)
class Bucket:
    """One bucket of a curve, beginning at `start`. `mean` is of the values in it, `last` the value at its end."""

    start: float
    low: float
    high: float
    mean: float
    last: float


class Envelope:
    """Takes points in any order and keeps at most `num_buckets` buckets of equal width, counted from `origin`.

    When there would be more, the width doubles, so the buckets of all envelopes with one origin and first width line
    up. Points before the origin count as in the first bucket.
    """

    def __init__(self, *, origin: float, width: float, num_buckets: int = DEFAULT_NUM_BUCKETS) -> None:
        if width <= 0 or num_buckets < 2:
            raise ValueError("an envelope has stretches of a width above 0, and at least 2 of them")
        self.origin = origin
        self.width = width
        self.num_buckets = num_buckets
        # By the bucket's number: lowest, highest, sum, count, last.
        self._buckets: dict[int, list[float]] = {}

    def add(self, x: float, value: float) -> None:
        """Adds a point; doubles the width of the buckets until it fits."""
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

    def __bool__(self) -> bool:
        """Whether it has any point."""
        return bool(self._buckets)

    def widen(self, width: float) -> None:
        """Makes the buckets this wide: their present width times a power of two."""
        while self.width < width:
            self._double()

    def include(self, other: Envelope) -> None:
        """Merges another part of the same curve, with the same origin and first width. `other` may become wider too."""
        width = max(self.width, other.width)
        self.widen(width)
        other.widen(width)
        for number, bucket in other._buckets.items():
            known = self._buckets.get(number)
            self._buckets[number] = list(bucket) if known is None else _joined(known, bucket)

    def include_whole(self, other: Envelope) -> None:
        """Adds a whole curve to the range over several: a bucket then spans the values of all of them. Between its
        first and its last point `other` keeps its last value through buckets in which it has no point. Otherwise as
        `include`.
        """
        width = max(self.width, other.width)
        self.widen(width)
        other.widen(width)
        own = other._buckets
        held = 0.0
        for number in range(min(own, default=0), max(own, default=-1) + 1):
            bucket = own.get(number)
            mean = held if bucket is None else bucket[2] / bucket[3]
            low, high, held = (held, held, held) if bucket is None else (bucket[0], bucket[1], bucket[4])
            known = self._buckets.get(number)
            if known is None:
                self._buckets[number] = [low, high, mean, 1.0, held]
                continue
            if low < known[0]:
                known[0] = low
            if high > known[1]:
                known[1] = high
            known[2] += mean
            known[3] += 1.0
            known[4] = held

    def _double(self) -> None:
        self.width *= 2
        halves = sorted(self._buckets.items())
        self._buckets = {}
        for number, bucket in halves:
            known = self._buckets.get(number // 2)
            self._buckets[number // 2] = bucket if known is None else _joined(known, bucket)


def _joined(one: list[float], other: list[float]) -> list[float]:
    return [min(one[0], other[0]), max(one[1], other[1]), one[2] + other[2], one[3] + other[3], other[4]]
