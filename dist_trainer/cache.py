"""Files kept between runs: where they are, when they are stale, and writing them atomically."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from dist_trainer.disk import write_text, writing


def cache_dir(environ: Mapping[str, str]) -> Path:
    """$XDG_CACHE_HOME/dist_trainer, or ~/.cache/dist_trainer."""
    home = environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "dist_trainer"


def code_digest(sources: Iterable[Path]) -> str:
    """A digest that changes with any byte of these files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def keep(path: Path, text: str) -> None:
    """Writes the text, with a digest, for `kept` to read. Raises OSError, leaving nothing behind."""
    write_whole(path, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def kept(path: Path) -> bytes | None:
    """What `keep` wrote; None if there is nothing, or if it was changed or cut short."""
    try:
        digest, _, data = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest().encode() == digest else None


def write_whole(path: Path, text: str) -> None:
    """Writes a temporary file and renames it, so that a reader sees all or nothing. Raises OSError, leaving nothing."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_text(aside, text)
        with writing(path):
            aside.replace(path)
    except OSError:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
