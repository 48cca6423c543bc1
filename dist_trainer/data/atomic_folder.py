"""Folders that appear all at once."""

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
    """Yields an empty folder beside `output`, and renames it to `output` when the block ends well.

    Raises UserError when `output` exists and isn't an empty folder, before the block or after it (another process
    may have been first), or when the disk refuses, with `hint` as what to do. Nothing is left behind after an error.
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
    """Removes what a killed writer of `output` left. Only for one who knows that nobody is writing it now."""
    for partial in output.parent.glob(f".{output.name}.partial-*"):
        shutil.rmtree(partial, ignore_errors=True)


def _as_it_began(error: OSError) -> OSError:
    """The error that knows what was needed: where a file on a full disk is then closed, that fails again."""
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
