"""The limit of open files of this process: every connection takes one or more."""

from __future__ import annotations

import resource
from collections.abc import Callable

from dist_trainer.errors import UserError


def allow_open_files(needed: int, refusal: Callable[[int], UserError]) -> int:
    """Raises the soft limit to `needed` if it is lower; returns the soft limit before.

    Raises refusal(hard limit) if the hard limit is below `needed`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return soft
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise refusal(hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return soft
