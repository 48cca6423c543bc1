"""The results of a benchmark as one page, and as Markdown: the same sentences and tables in both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dist_trainer.benchmark.worth import tables
from dist_trainer.benchmark.worth.cells import AGAIN, ALL
from dist_trainer.benchmark.worth.charts import Bars, Scatter, speed_against_memory, waterfall, worth_bars
from dist_trainer.benchmark.worth.ratios import Estimate
from dist_trainer.benchmark.worth.results import Results
from dist_trainer.benchmark.worth.rows import Row
from dist_trainer.benchmark.worth.words import interval, times
from dist_trainer.report import rendering
from dist_trainer.report.tables import Table
from dist_trainer.units import counted

PACKAGE = "dist_trainer.benchmark.worth"


@dataclass(frozen=True)
class Page:
    """Everything that the report shows; the templates only lay it out."""

    title: str
    subtitle: str
    look: str
    sentence: str
    notes: tuple[str, ...]
    scatter: Scatter | None
    bars: Bars | None
    waterfall: Bars | None
    worth: Table | None
    speed: Table
    memory: Table
    failures: Table | None
    commands: Table | None
    environment: Table


def make_page(results: Results) -> Page:
    rows, environment = results.rows, results.environment
    by_name = {row.cell: row for row in rows}
    look, sentence = _headline(by_name.get(ALL))
    return Page(
        title=f"What each optimisation is worth: {environment.model_size}",
        subtitle=f"{environment.hardware}, {counted(environment.num_ranks, 'rank')}",
        look=look,
        sentence=sentence,
        notes=tuple(_notes(rows=by_name)),
        scatter=speed_against_memory(rows),
        bars=worth_bars(results.contributions),
        waterfall=waterfall(results),
        worth=tables.worth_table(results.contributions),
        speed=tables.speed_table(rows),
        memory=tables.memory_table(rows),
        failures=tables.failure_table(rows),
        commands=tables.command_table(rows),
        environment=tables.environment_table(environment),
    )


def render_html(page: Page) -> str:
    return rendering.html("worth.html.j2", page, packages=(PACKAGE,))


def render_markdown(page: Page) -> str:
    return rendering.markdown("worth.md.j2", page, packages=(PACKAGE,))


def write_page(page: Page, folder: Path) -> tuple[Path, Path]:
    """Writes both files. Raises OSError."""
    return rendering.write(render_html(page), render_markdown(page), folder)


def _headline(together: Row | None) -> tuple[str, str]:
    """The class in the report's style, and a sentence that says what all optimisations together came to."""
    if together is None or together.judgement == "not measured":
        return "not-judged", "All together were not measured."
    if together.judgement == "failed":
        return "failed", f"All together failed: {together.failure}"
    if together.ratio is None:
        return "not-judged", "There is no baseline to compare all together with."
    memory = "" if together.reduction is None else f", {_memory(together.reduction)}"
    if together.judgement == "spoils the loss":
        return "missed", f"All together spoil the loss: {_speed(together.ratio)}{memory}."
    if together.judgement == "no difference shown":
        return "not-judged", f"All together: no difference in speed is shown ({interval(together.ratio)}){memory}."
    look = {"faster": "met", "slower": "missed"}.get(together.judgement, "not-judged")
    few = ", but too few rounds to be sure" if together.judgement == "too few rounds" else ""
    return look, f"All together: {_speed(together.ratio)}{few}{memory}."


def _speed(ratio: Estimate) -> str:
    return f"{times(ratio)[1:]} times the baseline's speed"


def _memory(reduction: float) -> str:
    if abs(reduction) < 0.0005:
        return "the same peak memory"
    return f"{abs(reduction):.1%} {'less' if reduction > 0 else 'more'} peak memory"


def _notes(rows: dict[str, Row]) -> list[str]:
    """What one should know before one believes the tables."""
    notes = []
    again = rows.get(AGAIN)
    if again is not None and again.ratio is not None and again.ratio.low is not None:
        seen = f"The baseline measured again beside itself: {times(again.ratio)}"
        if again.ratio.verdict == "no difference shown":
            notes.append(f"{seen}. That is the noise floor; no difference is shown, as it should be.")
        else:
            notes.append(
                f"{seen}. It differs from itself: the machine was not quiet, or this is the one interval in twenty "
                "that does not contain the true value."
            )
    spoiled = [row.title for row in rows.values() if row.loss_is_spoiled]
    if spoiled:
        notes.append(f"Spoil the loss, and are not praised for their speed: {', '.join(spoiled)}.")
    busy = max((row.num_busy_rounds for row in rows.values()), default=0)
    if busy:
        notes.append(f"The machine was busy with other processes in up to {counted(busy, 'round')} of a cell.")
    failed = sum(row.judgement == "failed" for row in rows.values())
    if failed:
        notes.append(f"{counted(failed, 'cell')} of {len(rows)} failed; the reasons stand below.")
    unmeasured = sum(row.judgement == "not measured" for row in rows.values())
    if unmeasured:
        notes.append(f"{counted(unmeasured, 'cell')} of {len(rows)} not measured.")
    if any(row.judgement == "too few rounds" for row in rows.values()):
        notes.append(
            "An interval takes three rounds of each order, six in all; seven or more show smaller differences."
        )
    return [note.strip() for note in notes]
