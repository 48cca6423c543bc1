"""Commands in mounts of their own: real file systems that are small, full or read-only, which nobody else sees."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest
from ranks import Ended, run

_UNSHARE = ("unshare", "--mount", "--propagation", "private", "bash", "-c")


@cache
def _can_mount() -> bool:
    try:
        return (
            subprocess.run([*_UNSHARE, "mount -t tmpfs tmpfs /mnt"], capture_output=True, check=False).returncode == 0
        )
    except OSError:
        return False


def in_own_mounts(
    script: str, command: Sequence[str], *, cwd: Path | None = None, environ: Mapping[str, str] | None = None
) -> Ended:
    """Runs the bash `script`, with `command` as its arguments, in a mount namespace; skips where that cannot be had."""
    if not _can_mount():
        pytest.skip("mounts of one's own need root, and unshare")
    return run([*_UNSHARE, script, "in_own_mounts", *command], cwd=cwd or Path.cwd(), environ=environ)
