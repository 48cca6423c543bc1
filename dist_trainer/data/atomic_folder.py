"""Folders that appear complete or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_trainer.disk import WriteError, cannot_write
from dist_trainer.errors import UserError


@contextmanager
def atomic_folder(output: Path, *, hint: str | None = None) -> Iterator[Path]:
    """Yields an empty folder beside `output`, and renames it to `output` if the block ends without an error.

    Raises UserError if `output` exists and is not an empty folder, before the block or after it (another process may
    have been faster), and if the disk refuses, with `hint` as what to do. After an error nothing is left behind.
    """
    _check_vacant(output)
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        yield partial
        _check_vacant(output)
        partial.rename(output)
    except OSError as error:
        _check_vacant(output)
        raise cannot_write("the output cannot be written", _as_it_began(error), output, hint=hint) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_abandoned(output: Path) -> None:
    """Removes what killed writers of `output` left. Call it only when certain that nobody is writing `output` now."""
    for partial in output.parent.glob(f".{output.name}.partial-*"):
        shutil.rmtree(partial, ignore_errors=True)


def _as_it_began(error: OSError) -> OSError:
    """The original error, which knows how much was to be written: closing a file on a full disk raises a second one."""
    first, cause = error, error.__context__
    while cause is not None:
        if isinstance(cause, WriteError):
            first = cause
        cause = cause.__context__
    return first


def _check_vacant(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(
            "the output exists already",
            where=str(output),
            expected="a folder that doesn't exist, or an empty one",
            hint="name another folder, or remove this one",
        )
