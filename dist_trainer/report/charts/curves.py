"""Which charts a report has: memory over time, and loss, speed and the like over the steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dist_trainer.memory.targets import CPU, Verdict
from dist_trainer.report.charts.chart import Chart, Mark, Rule, Series
from dist_trainer.report.reading.envelope import Bucket, Envelope
from dist_trainer.report.reading.findings import Findings
from dist_trainer.report.reading.measured import History
from dist_trainer.report.summary import Summary
from dist_trainer.report.verdict import fullest, label, main_prediction
from dist_trainer.units import GB, format_bytes

STEP_CURVES = (
    ("loss", "Loss", "nats a token", False),
    ("learning_rate", "Learning rate", "rate", True),
    ("grad_norm", "Gradient norm", "norm", True),
    ("tokens_per_s", "Speed", "tokens/s", True),
)


@dataclass(frozen=True)
class Compared:
    """One of several runs that are compared; `name` tells them apart."""

    name: str
    findings: Findings
    summary: Summary


def memory_chart(findings: Findings, summary: Summary) -> Chart:
    """Every GPU over time; of more than eight GPUs, the range over all and the one with the highest peak."""
    memory = findings.memory
    is_resident, shown, top = memory.is_resident, memory.shown, memory.fullest
    names = {verdict.source: label(verdict) for verdict in summary.verdicts}
    if memory.range_over_all is None or top is None:
        series = [
            Series(names[history.measured.source], _in_gb(history.curve), number)
            for number, history in enumerate(shown)
        ]
    else:
        series = [
            Series(f"all {len(shown)}", _in_gb(memory.range_over_all), 0, is_band=True),
            Series(f"{names[top.measured.source]}, the fullest", _in_gb(top.curve), 5),
        ]
    what = "Resident set of each process" if is_resident else "Memory in use on each GPU, by NVML"
    return Chart(
        key="memory",
        title=f"{what}, over time",
        x_kind="time",
        series=since_start(series, findings),
        unit="GB",
        rules=() if is_resident else rules(summary),
        marks=sessions(findings),
        caption=_memory_caption(is_resident, memory.histories),
    )


def step_charts(findings: Findings) -> list[Chart]:
    steps = findings.steps
    marks = [Mark(float(number), name) for number, name in steps.phase_starts()]
    return [
        Chart(
            key=column,
            title=title,
            x_kind="step",
            series=[Series(title.lower(), steps.curve(column), 0, line="mean")],
            marks=marks if len(marks) > 1 else (),
            y_name=y_name,
            from_zero=from_zero,
        )
        for column, title, y_name, from_zero in STEP_CURVES
    ]


def compare_charts(runs: Sequence[Compared]) -> list[Chart]:
    """One curve per run: the GPU with its highest peak over time, and training's figures over the steps."""
    memory = []
    are_resident = []
    for number, run in enumerate(runs):
        history = run.findings.memory.fullest
        if history is not None:
            are_resident.append(history.is_resident)
            name = f"{run.name} (resident set)" if history.is_resident else run.name
            memory += since_start([Series(name, _in_gb(history.curve), number % 8)], run.findings)
    has_gpu = not all(are_resident)
    charts = [
        Chart(
            key="compare-memory",
            title="The fullest GPU of each run, over time" if has_gpu else "The fullest process of each run, over time",
            x_kind="time",
            series=memory,
            unit="GB",
            rules=rules(runs[0].summary, plan=False) if has_gpu else (),
            caption="Memory in use by NVML." if has_gpu else "",
        )
    ]
    for column, title, y_name, from_zero in STEP_CURVES:
        series = [
            Series(run.name, buckets, number % 8, line="mean")
            for number, run in enumerate(runs)
            if (buckets := run.findings.steps.curve(column))
        ]
        charts.append(Chart(f"compare-{column}", title, "step", series, y_name=y_name, from_zero=from_zero))
    return charts


def rules(summary: Summary, *, plan: bool = True) -> list[Rule]:
    """Target, baseline and plan as horizontal lines in GB, as far as they are known."""
    worst = fullest(summary.verdicts)
    if worst is None:
        return []
    found = []
    if worst.baseline_bytes is not None:
        found.append(Rule("baseline", f"baseline {format_bytes(worst.baseline_bytes)}", worst.baseline_bytes / GB))
    if worst.target_bytes is not None:
        found.append(Rule("target", f"target {format_bytes(worst.target_bytes)}", worst.target_bytes / GB))
    planned = _planned_bytes(worst)
    if plan and planned is not None:
        found.append(Rule("plan", f"planned {format_bytes(planned)}", planned / GB))
    return found


def _in_gb(curve: Envelope | None) -> list[Bucket]:
    buckets = [] if curve is None else curve.buckets()
    return [Bucket(one.start, one.low / GB, one.high / GB, one.mean / GB, one.last / GB) for one in buckets]


def since_start(series: Sequence[Series], findings: Findings) -> list[Series]:
    """The curves over seconds since the run's first start instead of the epoch, cut where no process ran."""
    origin = _origin(findings)
    breaks = restarts(findings)
    return [
        Series(
            one.name,
            [Bucket(max(0.0, b.start - origin), b.low, b.high, b.mean, b.last) for b in one.buckets],
            one.colour,
            one.line,
            one.is_band,
            breaks,
        )
        for one in series
    ]


def restarts(findings: Findings) -> list[float]:
    """Seconds from the first start to each later one, taken when the first rank's records began, which is a little
    before the "start" event.
    """
    starts = [event.time_s for event in findings.events if event.kind == "start"]
    recorded = findings.memory.starts_s.values()
    return [
        min([said_s, *(at_s for at_s in recorded if before_s < at_s < said_s)]) - _origin(findings)
        for before_s, said_s in itertools.pairwise(starts)
    ]


def sessions(findings: Findings) -> list[Mark]:
    """A mark where each phase begins; in a run that was started more than once, also one per session, numbered."""
    phases = [Mark(time_s - _origin(findings), name) for time_s, name in findings.marks]
    if not restarts(findings):
        return phases
    marks = []
    begins = [-math.inf, *restarts(findings), math.inf]
    for number, (begin, end) in enumerate(itertools.pairwise(begins), start=1):
        inside = [mark for mark in phases if begin <= mark.x < end]
        name = f"session {number}" + (f": {inside[0].name}" if inside else "")
        marks += [Mark(max(0.0, begin), name), *inside[1:]]
    return marks


def _origin(findings: Findings) -> float:
    return findings.memory.origin_s


def _planned_bytes(verdict: Verdict) -> int | None:
    if verdict.device == CPU:
        return None
    planned = main_prediction(verdict)
    return planned.planned_bytes if planned else None


def _memory_caption(is_resident: bool, histories: Sequence[History]) -> str:
    if not histories:
        return "There are no memory records."
    if is_resident:
        return "No GPU was read: this is the memory of the process on the host, which the target is not about."
    return "Everything on the GPU counts. Each stretch shows its highest value as a line and its range as an area."
