"""A counter on stderr for a search: how many settings it has planned so far. How many there will be is not known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counting(what: str, *, enabled: bool) -> Iterator[Callable[[], None]]:
    """Yields a function to call once for each thing done. `what` is what is counted: "settings planned"."""
    if not enabled:
        yield lambda: None
        return

    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn(f"{{task.completed}} {what}"), TimeElapsedColumn())
    # Transient: the counter disappears, so that only the result stays on the terminal.
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda: shown.advance(task)
