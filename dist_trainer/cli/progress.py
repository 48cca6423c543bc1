"""How far a search is, on stderr: how many settings were planned so far, for nobody knows how many there will be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counting(what: str, *, enabled: bool) -> Iterator[Callable[[], None]]:
    """Yields a function to call for each that is done. `what` is what is counted: "settings planned"."""
    if not enabled:
        yield lambda: None
        return

    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn(f"{{task.completed}} {what}"), TimeElapsedColumn())
    # What is found stands alone on the terminal afterwards.
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda: shown.advance(task)
