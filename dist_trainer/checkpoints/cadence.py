"""How often a checkpoint should be saved: so that saves and the work that failures undo take the least time together.

Failures are taken to come at a constant rate, as those of hardware do once it is in use. Sources:

- John W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (1974): sqrt(2 C M) for a
  cost C and a mean time M between failures.
- J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22 (2006), eq. 37:
  what is used here, because Young's is too long where C is no longer small beside M. How long a restart takes does not
  change the optimum.
- The rate is not known, only that n failures came in a time T. Its prior is a Gamma distribution of shape 1/2, which
  says as little as one can (H. Jeffreys, "An invariant form for the prior probability", 1946), with the mean of the
  largest run that was published: 419 unexpected interruptions in 54 days on 16,384 GPUs, one in 3.1 hours (A. Dubey et
  al., "The Llama 3 Herd of Models", 2024, section 3.3.4). What is wasted grows with the rate, to first order linearly,
  so the least is wasted on average with the posterior's mean rate, (1/2 + n) / (1.55 h + T).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

PRIOR_FAILURES = 0.5
PRIOR_S = PRIOR_FAILURES * 54 * 86_400 / 419


@dataclass(frozen=True)
class Failures:
    """How many came in how many seconds of training."""

    count: int = 0
    trained_s: float = 0.0

    @property
    def mean_time_s(self) -> float:
        """The time between two of them that is reckoned with."""
        return (PRIOR_S + self.trained_s) / (PRIOR_FAILURES + self.count)


def best_period_s(cost_s: float, mean_time_s: float) -> float:
    """From the beginning of one save to that of the next: Daly's time between two saves, and the cost of one."""
    if cost_s >= 2 * mean_time_s:
        return mean_time_s + cost_s
    ratio = math.sqrt(cost_s / (2 * mean_time_s))
    return math.sqrt(2 * cost_s * mean_time_s) * (1 + ratio / 3 + ratio**2 / 9)


@dataclass(frozen=True)
class Save:
    """What one took. `cost_s`: by how much it delayed the steps. `took_s`: until it was written."""

    cost_s: float
    took_s: float


def mean_of(saves: Collection[Save]) -> Save:
    """Of one save at least."""
    count = len(saves)
    return Save(sum(save.cost_s for save in saves) / count, sum(save.took_s for save in saves) / count)


def period_s(save: Save, failures: Failures) -> float:
    """The best one, but never shorter than a save takes: the next one begins when the one before is written."""
    return max(save.took_s, best_period_s(save.cost_s, failures.mean_time_s))
