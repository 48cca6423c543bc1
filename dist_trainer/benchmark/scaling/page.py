"""The results of a sweep as one page, and as Markdown: the same sentences and tables in both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.benchmark.scaling import tables
from dist_trainer.benchmark.scaling.cells import MODES
from dist_trainer.benchmark.scaling.chart import speed_up_against_ranks
from dist_trainer.benchmark.scaling.points import Point
from dist_trainer.benchmark.scaling.results import Environment, Results
from dist_trainer.benchmark.worth.charts import Scatter
from dist_trainer.benchmark.worth.page import PACKAGE as WORTH
from dist_trainer.benchmark.worth.words import times
from dist_trainer.report import rendering
from dist_trainer.report.tables import Table
from dist_trainer.units import counted

PACKAGES = ("dist_trainer.benchmark.scaling", WORTH)


@dataclass(frozen=True)
class Page:
    """Everything that the report shows; the templates only lay it out."""

    title: str
    subtitle: str
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    chart: Scatter | None
    scaling: tuple[Table, ...]
    failures: Table | None
    commands: Table
    environment: Table


def make_page(results: Results) -> Page:
    points, environment = results.points, results.environment
    return Page(
        title=f"How it scales with ranks: {environment.model_size}",
        subtitle=f"{environment.hardware}, {environment.deepspeed}",
        sentences=tuple(_headlines(points)),
        notes=tuple(_notes(points, environment)),
        chart=speed_up_against_ranks(points),
        scaling=tuple(tables.scaling_table(points, mode) for mode in MODES),
        failures=tables.failure_table(points),
        commands=tables.command_table(points),
        environment=tables.environment_table(environment),
    )


def render_html(page: Page) -> str:
    return rendering.html("scaling.html.j2", page, packages=PACKAGES)


def render_markdown(page: Page) -> str:
    return rendering.markdown("scaling.md.j2", page, packages=PACKAGES)


def write_page(page: Page, folder: Path) -> tuple[Path, Path]:
    """Writes both files. Raises OSError."""
    return rendering.write(render_html(page), render_markdown(page), folder)


def _headlines(points: Sequence[Point]) -> Iterator[str]:
    """A sentence for each kind: what the largest world came to."""
    for mode in MODES:
        first, *_, last = (point for point in points if point.mode == mode)
        name = f"{mode.capitalize()} scaling from {first.num_ranks} to {counted(last.num_ranks, 'rank')}"
        if last.speed_up is None:
            yield f"{name}: {last.judgement}."
            continue
        few = ", but too few rounds to be sure" if last.judgement == "too few rounds" else ""
        busy = ", on a busy machine" if any(2 * one.num_busy_rounds > one.num_rounds for one in (first, last)) else ""
        yield (
            f"{name}: {times(last.speed_up)}{few}{busy}; efficiency {last.efficiency:.0%}, "
            f"{last.share_of_ideal:.0%} of the ideal x{last.ideal:.2f}."
        )


def _notes(points: Sequence[Point], environment: Environment) -> Iterator[str]:
    """What one should know before one believes the tables."""
    if environment.num_gpus == 0:
        yield (
            f"All ranks share the {counted(environment.num_cores, 'core')} of this host: the ideal is in proportion to "
            "the cores in use, not to the ranks. Efficiency counts ranks, and falls for that reason alone; the share "
            "of the ideal is what the program loses, or gains where ranks use the cores better than threads of one do."
        )
    crowded = sorted({point.num_ranks for point in points if point.is_crowded})
    if crowded:
        yield f"More ranks than cores: {', '.join(map(str, crowded))}. They take turns, and wait for each other."
    yield "This host alone: nothing is said of a network between hosts."
    cells = tables.each_cell(points)
    busy = max((point.num_busy_rounds for point in cells), default=0)
    if busy:
        yield f"The machine was busy with other processes in up to {counted(busy, 'round')} of a cell."
    for judgement in ("failed", "not measured"):
        number = sum(point.judgement == judgement for point in cells)
        if number:
            yield f"{counted(number, 'cell')} of {len(cells)} {judgement}."
    if any(point.judgement == "too few rounds" for point in cells):
        yield "An interval takes three rounds of each order, six in all; seven or more show smaller differences."
