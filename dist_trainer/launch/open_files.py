"""How many files this process may have open: each connection is one or more."""

from __future__ import annotations

import resource
from collections.abc import Callable

from dist_trainer.errors import UserError


def allow_open_files(needed: int, refusal: Callable[[int], UserError]) -> int:
    """Raises the limit to `needed` where it is lower, and returns what it was.

    Raises refusal(the hard limit) where the system does not allow so many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return soft
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise refusal(hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return soft
