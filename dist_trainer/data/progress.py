"""A progress bar on stderr that counts bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    def __call__(self, num_bytes: int) -> None: ...


@contextmanager
def byte_progress(
    description: str, total_bytes: int, *, enabled: bool, afterwards: str | None = None
) -> Iterator[Advance]:
    """Yields a function to call with the bytes done since its last call. `afterwards` names the step that follows, of
    which nobody knows how long it takes.
    """
    if not enabled:
        yield lambda num_bytes: None
        return

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Bytes(DownloadColumn):
        def render(self, task: Task) -> Text:
            # A task of unknown length has a moving bar and no figures.
            return Text("") if task.total is None else super().render(task)

    columns = (TextColumn("{task.description}"), BarColumn(), Bytes(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total_bytes)
        then = None if afterwards is None else bar.add_task(afterwards, total=None, visible=False)

        def advance(num_bytes: int) -> None:
            bar.advance(task, num_bytes)
            if then is not None and bar.tasks[0].finished:
                bar.update(then, visible=True)

        yield advance
