"""DeepSpeed's ops that are compiled at their first use, and the lock files that a killed build leaves behind."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def build_folder(environ: Mapping[str, str]) -> Path:
    """Where torch builds extensions: TORCH_EXTENSIONS_DIR, or a folder in the user's cache."""
    told = environ.get("TORCH_EXTENSIONS_DIR")
    if told:
        return Path(told)
    from torch.utils.cpp_extension import get_default_build_root

    return Path(get_default_build_root())


def locks(folder: Path) -> list[Path]:
    """The locks of builds under way, or of builds that were killed: later runs wait for those without a word."""
    return sorted([*folder.glob("*/lock"), *folder.glob("*/*/lock")])


def notices() -> list[str]:
    return [
        f"{lock} is the lock of an op being compiled; if this run seems to hang and nothing is compiling, delete it"
        for lock in locks(build_folder(os.environ))
    ]
