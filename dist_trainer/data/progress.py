"""A progress bar by bytes, on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    def __call__(self, num_bytes: int) -> None: ...


@contextmanager
def byte_progress(description: str, total_bytes: int, *, enabled: bool) -> Iterator[Advance]:
    """Yields a function to call with the bytes done since the last call."""
    if not enabled:
        yield lambda num_bytes: None
        return

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total_bytes)
        yield lambda num_bytes: bar.advance(task, num_bytes)
