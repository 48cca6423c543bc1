from __future__ import annotations

import pytest

from dist_trainer.benchmark.worth.ratios import Estimate
from dist_trainer.benchmark.worth.words import interval, times, worth


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.9, 1.1, "0.90 to 1.10"),
        (1.46, 1.54, "1.46 to 1.54"),
        (1.002, 1.02, "1.002 to 1.020"),
        # What ends a hair beside 1 does not look as if it ended there.
        (0.9, 0.9961, "0.900 to 0.996"),
        (0.9, 0.9996, "0.9000 to 0.9996"),
        (1.0, 1.0, "1.00 to 1.00"),
        (1.0, 1.5, "1.00 to 1.50"),
        (None, None, "–"),
    ],
)
def test_an_interval_has_as_many_digits_as_it_takes(low: float | None, high: float | None, text: str) -> None:
    assert interval(Estimate(1.2, low, high, 7)) == text


def test_a_ratio_in_words() -> None:
    assert times(Estimate(1.5, 1.46, 1.54, 7)) == "x1.50 (1.46 to 1.54)"
    assert worth(Estimate(1.5, 1.46, 1.54, 7), is_spoiled=False) == "x1.50 (1.46 to 1.54)"
    assert worth(Estimate(1.5, 1.46, 1.54, 7), is_spoiled=True) == "spoils the loss, x1.50 (1.46 to 1.54)"
    assert worth(Estimate(1.01, 0.98, 1.04, 7), is_spoiled=False) == "no difference shown (0.98 to 1.04)"
    assert worth(Estimate(1.5, None, None, 3), is_spoiled=False) == "x1.50, too few rounds"
