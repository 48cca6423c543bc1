"""What a run came to, read from its records: summary.json for machines, a table for people."""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dist_trainer.config.run import TargetConfig
from dist_trainer.memory.targets import Verdict, judge
from dist_trainer.records import EVENTS_FILE, Event, MemoryRecord, StepRecord, read_records, read_steps
from dist_trainer.units import format_count, format_duration, format_gb

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Summary:
    """`unigram_entropy_nats`: the loss of a model that knows how often each token occurs and nothing else."""

    name: str
    num_steps: int
    num_tokens: int
    first_loss: float | None
    last_loss: float | None
    validation_loss: float | None
    unigram_entropy_nats: float | None
    median_tokens_per_s: float | None
    data_wait_fraction: float | None
    train_s: float
    verdicts: tuple[Verdict, ...]


def summarise(run_dir: Path, *, name: str, targets: TargetConfig | None, unigram_entropy_nats: float | None) -> Summary:
    records_dir = run_dir / "records"
    steps = read_steps(records_dir)
    memory = [
        record
        for path in sorted(records_dir.glob("memory-rank-*.jsonl"))
        for record in read_records(path, MemoryRecord)
    ]
    evaluations = [event for event in read_records(records_dir / EVENTS_FILE, Event) if event.kind == "evaluation"]
    train_s = sum(step.step_s for step in steps)
    # The first step warms up; it counts where it is the only one.
    speeds = [step.tokens_per_s for step in steps[1:] or steps]
    return Summary(
        name=name,
        num_steps=len(steps),
        num_tokens=sum(step.num_tokens for step in steps),
        first_loss=steps[0].loss if steps else None,
        last_loss=mean_of_last_losses(steps),
        validation_loss=evaluations[-1].facts["loss"] if evaluations else None,
        unigram_entropy_nats=unigram_entropy_nats,
        median_tokens_per_s=statistics.median(speeds) if speeds else None,
        data_wait_fraction=sum(step.data_wait_s for step in steps) / train_s if train_s else None,
        train_s=train_s,
        verdicts=tuple(judge(memory, targets)),
    )


def mean_of_last_losses(steps: list[StepRecord], count: int = 10) -> float | None:
    """The mean over the last `count` steps: one step's loss is mostly its batch."""
    losses = [step.loss for step in steps[-count:]]
    return sum(losses) / len(losses) if losses else None


def write(summary: Summary, run_dir: Path) -> Path:
    path = run_dir / SUMMARY_FILE
    path.write_text(json.dumps(dataclasses.asdict(summary), indent=2) + "\n", encoding="utf-8")
    return path


def show(summary: Summary, run_dir: Path, console: Console) -> None:
    # Text, not str: a name or a folder with brackets in it is no markup.
    table = Table(title=Text(f"{summary.name}: {run_dir}"), title_justify="left", show_header=False)
    table.add_column()
    table.add_column()
    for label, value in _rows(summary):
        table.add_row(label, value)
    console.print(table)


def _rows(summary: Summary) -> list[tuple[str, str]]:
    rows = [
        (
            "steps",
            f"{summary.num_steps} ({format_count(summary.num_tokens)} tokens, {format_duration(summary.train_s)})",
        )
    ]
    if summary.first_loss is not None and summary.last_loss is not None:
        rows.append(("loss", f"{summary.first_loss:.4f} -> {summary.last_loss:.4f} (mean of the last 10 steps)"))
    if summary.validation_loss is not None:
        rows.append(("validation loss", f"{summary.validation_loss:.4f}"))
    if summary.unigram_entropy_nats is not None:
        rows.append(("unigram entropy", f"{summary.unigram_entropy_nats:.4f} (the loss of token frequencies alone)"))
    if summary.median_tokens_per_s is not None:
        rows.append(("speed", f"{format_count(summary.median_tokens_per_s)} tokens/s (median)"))
    if summary.data_wait_fraction is not None:
        rows.append(("waiting for data", f"{100 * summary.data_wait_fraction:.1f}% of the time"))
    rows += [(f"memory, rank {verdict.rank}", describe(verdict)) for verdict in summary.verdicts]
    return rows


def describe(verdict: Verdict) -> str:
    """'2.31 GB of 2.50 GB: met (42% below 4.00 GB)', or why it is not judged and the CPU's own figure."""
    peak = format_gb(verdict.peak_bytes)
    if verdict.judgement == "not judged" or verdict.target_bytes is None:
        kind = "resident" if verdict.is_resident else "used"
        return f"{peak} {kind}; not judged: {verdict.reason}"
    text = f"{peak} of {format_gb(verdict.target_bytes)}: {verdict.judgement}"
    if verdict.reduction is not None and verdict.baseline_bytes is not None:
        side = "above" if verdict.reduction < 0 else "below"
        text += f" ({100 * abs(verdict.reduction):.0f}% {side} {format_gb(verdict.baseline_bytes)})"
    return text
