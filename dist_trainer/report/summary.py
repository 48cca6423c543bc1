"""What a run came to, from its records: summary.json for programs, a table for people."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dist_trainer.disk import write_text
from dist_trainer.encoding import all_as_utf8, printable
from dist_trainer.memory.targets import Baseline, Verdict, judge
from dist_trainer.report.reading.findings import Findings, read_findings
from dist_trainer.report.reading.progress import State
from dist_trainer.report.reading.steps import total
from dist_trainer.report.remedies import remedies
from dist_trainer.report.verdict import RunVerdict, describe, fullest, label, run_verdict
from dist_trainer.units import counted, format_bytes, format_count, format_duration

SUMMARY_FILE = "summary.json"
MAX_NUM_ROWS = 8
NUM_LAST_STEPS = 10


@dataclass(frozen=True)
class Summary:
    """`unigram_entropy_nats`: the loss of a model that knows only how often each token occurs.

    `verdict` is about the whole run, `verdicts` about each GPU. `problems`: what of its folder could not be read.
    """

    name: str
    state: State
    state_text: str
    num_steps: int
    num_tokens: int
    first_loss: float | None
    last_loss: float | None
    validation_loss: float | None
    unigram_entropy_nats: float | None
    median_tokens_per_s: float | None
    data_wait_fraction: float | None
    train_s: float
    verdict: RunVerdict
    verdicts: tuple[Verdict, ...]
    problems: tuple[str, ...] = ()


def summarise(run_dir: Path, *, baseline: Baseline | None = None) -> Summary:
    """Reads the folder. `baseline`: another run's measured peak, used instead of the run file's figure."""
    return summary_of(read_findings(run_dir), baseline=baseline)


def summary_of(findings: Findings, *, baseline: Baseline | None = None) -> Summary:
    """The summary of a run that was read already; `baseline` as in `summarise`."""
    asked, steps = findings.asked, findings.steps
    columns = steps.columns
    evaluations = [event for event in findings.events if event.kind == "evaluation" and "loss" in event.facts]
    entropies = [event.facts.get("unigram_entropy_nats") for event in findings.events if event.kind == "start"]
    train_s = total(columns["step_s"])
    # The first step includes warm-up: it is left out unless it is the only one.
    speeds = [speed for speed in columns["tokens_per_s"][1:] or columns["tokens_per_s"] if math.isfinite(speed)]
    measured = [history.measured for history in findings.histories]
    if findings.is_without_steps:
        measured = [dataclasses.replace(one, unknown=one.unknown or "no step was taken") for one in measured]
    verdicts = judge(measured, asked.targets, baseline=baseline, plan=asked.plan)
    worst = fullest(verdicts)
    advice = remedies(asked, worst) if worst is not None and worst.judgement == "missed" else []
    return Summary(
        name=asked.name,
        state=findings.progress.state,
        state_text=findings.progress.text,
        num_steps=len(steps),
        num_tokens=int(total(columns["num_tokens"])),
        first_loss=columns["loss"][0] if len(steps) else None,
        last_loss=mean_of_last(list(columns["loss"][-NUM_LAST_STEPS:])),
        validation_loss=evaluations[-1].facts["loss"] if evaluations else None,
        unigram_entropy_nats=entropies[-1] if entropies else None,
        median_tokens_per_s=statistics.median(speeds) if speeds else None,
        data_wait_fraction=total(columns["data_wait_s"]) / train_s if train_s else None,
        train_s=train_s,
        verdict=run_verdict(
            verdicts,
            findings.progress,
            on_gpu=asked.plan_on_gpu,
            advice=advice,
            notes=[*(baseline.notes if baseline else ()), *_length_notes(findings)],
        ),
        verdicts=tuple(verdicts),
        problems=findings.problems,
    )


def _length_notes(findings: Findings) -> list[str]:
    """Notes where the plan's sequence length (the longest in the run file) is longer than any that the run trained, or
    that was measured.
    """
    asked, steps = findings.asked, findings.steps
    if asked.plan is None or asked.run is None or not len(steps):
        return []
    lengths = {phase.name: phase.sequence_length for phase in asked.run.phases}
    # The CPU allocator is measured in the first two steps only, so the first phase is what counts.
    on_allocator = any(history.measured.allocator_bytes for history in findings.histories)
    trained = {lengths.get(name) for name in (steps.phases[:1] if on_allocator else set(steps.phases))}
    known = [length for length in trained if length is not None]
    if not known or max(known) == asked.plan.sequence_length:
        return []
    return [
        f"the plan is for {counted(asked.plan.sequence_length, 'token')} a sequence, what was measured had {max(known)}"
    ]


def mean_of_last(losses: list[float]) -> float | None:
    """The mean loss of the last steps, because the loss of a single step depends mostly on its batch."""
    return sum(losses) / len(losses) if losses else None


def of_last_steps(summary: Summary) -> str:
    """The label of `last_loss`, with the number of steps that it is the mean of."""
    num_steps = min(summary.num_steps, NUM_LAST_STEPS)
    return f"mean of the last {num_steps} steps" if num_steps > 1 else "of the only step"


def write(summary: Summary, run_dir: Path) -> Path:
    path = run_dir / SUMMARY_FILE
    write_text(path, json.dumps(all_as_utf8(dataclasses.asdict(summary)), indent=2) + "\n")
    return path


def show(summary: Summary, run_dir: Path, console: Console) -> None:
    # Text instead of str, because brackets in a name or a folder would be taken as rich's markup.
    table = Table(title=Text(printable(f"{summary.name}: {run_dir}")), title_justify="left", show_header=False)
    table.add_column()
    table.add_column()
    for name, value in rows(summary):
        table.add_row(Text(name), Text(printable(value)))
    console.print(table)


def rows(summary: Summary) -> list[tuple[str, str]]:
    """The summary as (label, value) pairs."""
    found = [("run", summary.state_text)] if summary.state != "finished" else []
    if summary.num_steps or not summary.verdicts or summary.verdicts[0].rank is not None:
        tokens = f"{format_count(summary.num_tokens)} tokens, {format_duration(summary.train_s)}"
        found.append(("steps", f"{summary.num_steps} ({tokens})"))
    found += _training_rows(summary)
    shown = list(summary.verdicts)
    if len(shown) > MAX_NUM_ROWS:
        shown.sort(key=lambda verdict: verdict.peak_bytes or verdict.resident_bytes or 0, reverse=True)
    found += [(f"memory, {label(verdict)}", describe(verdict)) for verdict in shown[:MAX_NUM_ROWS]]
    if len(shown) > MAX_NUM_ROWS:
        found.append(("memory, others", _others(shown)))
    found.append(("verdict", summary.verdict.sentence))
    found += [("to change", line) for line in summary.verdict.advice]
    found += [("not readable", problem) for problem in summary.problems]
    return found


def _others(shown: list[Verdict]) -> str:
    """`shown` are all verdicts, the highest peak first."""
    text = f"{len(shown) - MAX_NUM_ROWS} more, none of them higher"
    peaks = [verdict.peak_bytes for verdict in shown if verdict.peak_bytes is not None]
    if len(peaks) < len(shown):
        return text
    return f"{text}; half of all at most {format_bytes(peaks[len(peaks) // 2])}, the lowest {format_bytes(peaks[-1])}"


def _training_rows(summary: Summary) -> list[tuple[str, str]]:
    found = []
    if summary.first_loss is not None and summary.last_loss is not None:
        found.append(("loss", f"{summary.first_loss:.4f} -> {summary.last_loss:.4f} ({of_last_steps(summary)})"))
    if summary.validation_loss is not None:
        found.append(("validation loss", f"{summary.validation_loss:.4f}"))
    if summary.unigram_entropy_nats is not None:
        found.append(("unigram entropy", f"{summary.unigram_entropy_nats:.4f} (the loss of token frequencies alone)"))
    if summary.median_tokens_per_s is not None:
        found.append(("speed", f"{format_count(summary.median_tokens_per_s)} tokens/s (median)"))
    if summary.data_wait_fraction is not None:
        found.append(("waiting for data", f"{100 * summary.data_wait_fraction:.1f}% of the time"))
    return found
