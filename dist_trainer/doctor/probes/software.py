"""The software that a rank would run here, read from files and metadata, because importing it would take seconds."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import subprocess
import sys
from pathlib import Path

from dist_trainer.cache import code_digest
from dist_trainer.config.files import PACKAGE_DIR, shipped_folder
from dist_trainer.doctor.facts import Revision

PACKAGES = ("torch", "deepspeed", "numpy", "nvidia-ml-py", "psutil", "pydantic")
_NCCL = re.compile(r"nvidia-nccl-cu\d+")
_GIT_LIMIT_S = 5.0


def python_version() -> str:
    return platform.python_version()


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that ranks import; None if not installed. Includes NCCL if it came as a wheel."""
    versions = {name: _version(name) for name in PACKAGES}
    for found in importlib.metadata.distributions():
        name = found.metadata["Name"]
        if name and _NCCL.fullmatch(name):
            versions["nccl"] = found.version
    return versions


def torch_cuda_version(torch_folder: Path | None = None) -> str | None:
    """The CUDA version that torch was built for, '12.8'; None for a build without CUDA, or without torch."""
    folder = torch_folder or _package_folder("torch")
    if folder is None:
        return None
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return match.group(1) if match else None


def revision(package: Path = PACKAGE_DIR) -> Revision:
    """The revision of the package's code and data files. Raises OSError if they cannot be read."""
    sources = [
        *package.rglob("*.py"),
        *shipped_folder("configs").glob("*.yaml"),
        *shipped_folder("ds_configs").glob("*.json"),
    ]
    digest = code_digest(sorted(sources))
    root = package.parent
    if not (root / ".git").exists():
        return Revision(digest)
    head = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return Revision(digest, head, None if changes is None else bool(changes))


def interpreter() -> str:
    return sys.executable


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _git(root: Path, *words: str) -> str | None:
    """git's output; None if there is no git, it refuses (a checkout of another user), or takes too long."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *words],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_GIT_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
