"""What a person sees during training: rank 0's lines, and a progress bar at a terminal."""

from __future__ import annotations

import re
import textwrap
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from dist_trainer.config.resolve import Phase
from dist_trainer.records import StepRecord
from dist_trainer.streams import is_terminal
from dist_trainer.units import counted, format_bytes, format_count

LINE_EVERY_S = 10.0


class Display:
    """Silent on every rank but 0. Without a terminal it prints the first step, then a line every ten seconds."""

    def __init__(self, *, speaks: bool) -> None:
        at_terminal = is_terminal(1)
        self._console = Console(quiet=not speaks, highlight=False, soft_wrap=True, force_terminal=at_terminal)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._phase: Phase | None = None
        self._last_step = 0
        self._last_line_s = 0.0
        if speaks and at_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                # Fixed: in a narrow terminal the bar is cut, and no figure.
                BarColumn(bar_width=20),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(table_column=Column(no_wrap=True)),
                console=self._console,
            )

    def note(self, text: str) -> None:
        """Prints one line of the run; if too long for the terminal, it is wrapped with a hanging indent."""
        width = self._console.width if self._console.is_terminal else None
        self._console.print(wrapped(text, width), markup=False)

    def phase(self, phase: Phase, *, last_step: int) -> None:
        """Begins a phase. `last_step`, counted within the phase, is where this run will stop."""
        self._phase = phase
        self._last_step = last_step
        self._last_line_s = 0.0
        self.note(
            f"phase {phase.number}: {phase.name}, {_steps(phase, last_step)} of "
            f"{format_count(phase.tokens_per_step)} tokens, sequence length {phase.sequence_length}"
        )
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task(f"phase {phase.number}", total=last_step, figures="")

    def step(self, record: StepRecord, memory_bytes: int | None, steps_done: int) -> None:
        """`steps_done`: counted within the phase. `memory_bytes`: None if it was not read for this step."""
        assert self._phase is not None
        figures = (
            f"loss {record.loss:.4f}  lr {record.learning_rate:.2e}  {format_count(record.tokens_per_s)} tokens/s"
            + ("" if memory_bytes is None else f"  {format_bytes(memory_bytes)}")
        )
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=steps_done, figures=figures)
            return
        now = time.monotonic()
        if now - self._last_line_s >= LINE_EVERY_S or steps_done == self._last_step:
            self._last_line_s = now
            self.note(f"step {record.step}  {figures}")

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def wrapped(text: str, width: int | None) -> str:
    """`text` in lines of at most `width` columns, broken between words, with a hanging indent behind the label.

    "plan       12.3 GB a GPU" has a label and blanks in the first 11 columns. A word longer than a line, such as a
    path, is not broken. The text is returned unchanged if `width` is None or leaves it less than half of the line.
    """
    label = re.match(r"(?:\S+ {2,}|\s+)?", text)
    indent = label.end() if label else 0
    if width is None or 2 * indent > width:
        return text
    lines = textwrap.wrap(
        text,
        width,
        subsequent_indent=" " * indent,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)


def _steps(phase: Phase, last_step: int) -> str:
    return (
        counted(phase.steps, "step") if last_step == phase.steps else f"{last_step} of {counted(phase.steps, 'step')}"
    )
