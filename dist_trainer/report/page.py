"""The report of a run as an HTML page and as Markdown: both show the same verdict, tables and facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.report import rendering, tables
from dist_trainer.report.charts import curves
from dist_trainer.report.charts.breakdown import Breakdown, breakdown
from dist_trainer.report.charts.chart import Chart, Drawn, draw
from dist_trainer.report.charts.curves import Compared
from dist_trainer.report.charts.timeline import Timeline, timeline
from dist_trainer.report.summary import Summary, of_last_steps
from dist_trainer.report.tables import Table
from dist_trainer.report.verdict import format_error, fullest, is_on_cpu, label, main_prediction
from dist_trainer.units import counted, format_bytes, format_count


@dataclass(frozen=True)
class Tile:
    """One figure to be seen at a glance."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Headline:
    """The verdict in two words. `look`: its CSS class; `mark`: a sign in front of it, or ''."""

    look: str
    mark: str
    text: str


@dataclass(frozen=True)
class Page:
    """Everything that a report shows; the templates only do the layout."""

    summary: Summary
    headline: Headline
    error: str | None
    tiles: tuple[Tile, ...]
    gpus: Table
    all_gpus: tuple[Table, ...]
    memory: Drawn | None
    phases: Table | None
    breakdown: Breakdown | None
    predictions: Table | None
    steps: tuple[Drawn, ...]
    step_rows: Table | None
    start: Timeline | None
    start_rows: Table | None
    compared: Table | None
    compare_charts: tuple[Drawn, ...]
    run: Table
    notices: tuple[str, ...]
    assumptions: tuple[str, ...]
    events: Table | None
    deepspeed: str | None


def make_page(run: Compared, others: Sequence[Compared] = ()) -> Page:
    findings, summary = run.findings, run.summary
    plan = findings.asked.plan
    notices = [event.message for event in findings.events if event.kind == "notice"]
    all_runs = [run, *others]
    return Page(
        summary=summary,
        headline=headline(summary),
        error=findings.progress.error,
        tiles=tuple(_tiles(summary)),
        gpus=tables.gpu_table(summary),
        all_gpus=tuple(tables.all_gpus_tables(summary)),
        memory=draw(curves.memory_chart(findings, summary)),
        phases=tables.phase_table(findings, summary),
        breakdown=breakdown(findings, summary),
        predictions=tables.prediction_table(summary),
        steps=_drawn(curves.step_charts(findings)),
        step_rows=tables.step_table(findings),
        start=timeline(findings.starts),
        start_rows=tables.start_table(findings),
        compared=tables.compare_table(all_runs) if others else None,
        compare_charts=_drawn(curves.compare_charts(all_runs)) if others else (),
        run=tables.run_table(findings, summary),
        notices=tuple(dict.fromkeys(notices)),
        assumptions=(*plan.assumptions, *plan.upper_bounds, *plan.unmodelled) if plan else (),
        events=tables.event_table(findings),
        deepspeed=tables.deepspeed_text(findings.asked),
    )


def render_html(page: Page) -> str:
    return rendering.html("report.html.j2", page)


def render_markdown(page: Page) -> str:
    return rendering.markdown("report.md.j2", page)


def write_page(page: Page, run_dir: Path) -> tuple[Path, Path]:
    """Writes both files. Raises OSError."""
    return rendering.write(render_html(page), render_markdown(page), run_dir)


def headline(summary: Summary) -> Headline:
    verdict = summary.verdict
    if summary.state == "failed":
        return Headline("failed", "✗", "Run failed")
    so_far = "" if verdict.is_final else " so far"
    if verdict.judgement == "met":
        return Headline("met", "✓", f"Target met{so_far}")
    if verdict.judgement == "missed":
        return Headline("missed", "✗", f"Target missed{so_far}")
    if verdict.by_plan is not None:
        return Headline(verdict.by_plan, "✓" if verdict.by_plan == "met" else "✗", f"Target {verdict.by_plan} by plan")
    if is_on_cpu(summary.verdicts):
        return Headline(
            "on-cpu", "", f"{counted(summary.num_steps, 'step')} on a CPU" if summary.num_steps else "On a CPU"
        )
    return Headline("not-judged", "?", "Not judged")


def _tiles(summary: Summary) -> list[Tile]:
    worst = fullest(summary.verdicts)
    found = []
    if worst is not None:
        found += _memory_tiles(summary, len(summary.verdicts))
    if summary.last_loss is not None:
        validation = "" if summary.validation_loss is None else f"; validation {summary.validation_loss:.4f}"
        found.append(Tile("loss", f"{summary.last_loss:.4f}", of_last_steps(summary) + validation))
    if summary.median_tokens_per_s is not None:
        found.append(Tile("tokens/s", format_count(summary.median_tokens_per_s), "median"))
    return found


def _memory_tiles(summary: Summary, count: int) -> list[Tile]:
    worst = fullest(summary.verdicts)
    assert worst is not None
    found = []
    of_all = f"{label(worst)}, fullest of {count}" if count > 1 else label(worst)
    if worst.peak_bytes is not None:
        found.append(Tile("peak", format_bytes(worst.peak_bytes), of_all))
        if worst.target_bytes is not None and worst.target_headroom_bytes is not None:
            left = worst.target_headroom_bytes
            words = f"{format_bytes(abs(left))} {'left' if left >= 0 else 'over'}"
            found.append(Tile("target", format_bytes(worst.target_bytes), words))
    elif worst.allocator_bytes:
        found.append(Tile("CPU allocator's peak", format_bytes(max(worst.allocator_bytes.values())), of_all))
    elif worst.resident_bytes is not None:
        found.append(Tile("resident set", format_bytes(worst.resident_bytes), of_all))
    if worst.reduction is not None and worst.baseline_bytes is not None:
        side = "less" if worst.reduction >= 0 else "more"
        detail = f"{side} than {format_bytes(worst.baseline_bytes)}, {worst.baseline_origin}"
        found.append(Tile("against the baseline", f"{100 * abs(worst.reduction):.1f}%", detail))
    planned = main_prediction(worst)
    if planned is not None:
        found.append(Tile("planned", format_bytes(planned.planned_bytes), f"{format_error(planned)} against measured"))
    return found


def _drawn(found: Sequence[Chart]) -> tuple[Drawn, ...]:
    return tuple(drawn for chart in found if (drawn := draw(chart)) is not None)
