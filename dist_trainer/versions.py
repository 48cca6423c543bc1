"""The versions of what computes a run's numbers."""

from __future__ import annotations

import importlib.metadata

from dist_trainer import __version__


def versions() -> dict[str, str]:
    """By package: dist_trainer, and torch and deepspeed as far as they are installed. Imports neither."""
    found = {"dist_trainer": __version__}
    for name in ("torch", "deepspeed"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
