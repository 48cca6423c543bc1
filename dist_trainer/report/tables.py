"""The tables of a report, as text; the HTML page and the Markdown show the same ones."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dist_trainer.config.optimisations import describe as describe_deepspeed
from dist_trainer.endings import ERROR, INTERRUPTED
from dist_trainer.memory.targets import CPU, Verdict
from dist_trainer.model.size import num_parameters
from dist_trainer.records import MONITOR_EVENT, Event
from dist_trainer.report.charts.curves import Compared
from dist_trainer.report.charts.timeline import in_order, slowest, standing
from dist_trainer.report.reading.asked import Asked
from dist_trainer.report.reading.findings import Findings
from dist_trainer.report.reading.measured import clock
from dist_trainer.report.reading.starts import RankStart
from dist_trainer.report.summary import Summary, of_last_steps
from dist_trainer.report.verdict import format_error, fullest, label, main_prediction
from dist_trainer.units import counted, format_bytes, format_count, format_duration

UNKNOWN = "not known"
NUM_GPUS_AT_ONCE = 8
MAX_NUM_GPUS = 256
MAX_NUM_HOSTS = 16
SPREAD = (
    ("highest", 1.0),
    ("99% are at most", 0.99),
    ("90% are at most", 0.9),
    ("half are at most", 0.5),
    ("10% are at most", 0.1),
    ("lowest", 0.0),
)
NUM_STEP_ROWS = 12
MAX_NUM_EVENTS = 40


@dataclass(frozen=True)
class Table:
    """`kinds`: for each row the name of its look (a judgement), or ''. The first column is text, the others figures."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    kinds: tuple[str, ...] = ()
    note: str = ""


def gpu_table(summary: Summary) -> Table:
    """The verdict on each GPU; of more than eight GPUs, first those that missed the target, then the highest peaks."""
    verdicts = list(summary.verdicts)
    if len(verdicts) <= NUM_GPUS_AT_ONCE:
        return _gpus(verdicts, "Each GPU")
    verdicts.sort(key=lambda one: (one.judgement != "missed", -_figure(one)))
    return _gpus(
        verdicts[:NUM_GPUS_AT_ONCE], f"{NUM_GPUS_AT_ONCE} of {counted(len(verdicts), 'GPU')}, the fullest first"
    )


def all_gpus_tables(summary: Summary) -> list[Table]:
    """Every GPU, if `gpu_table` does not show them all. With very many GPUs: percentiles of their peaks, and the hosts
    with the highest peaks.
    """
    verdicts = summary.verdicts
    if len(verdicts) <= NUM_GPUS_AT_ONCE:
        return []
    if len(verdicts) <= MAX_NUM_GPUS:
        return [_gpus(verdicts, f"All {counted(len(verdicts), 'GPU')}")]
    return [_spread(verdicts), _hosts(verdicts)]


def _spread(verdicts: Sequence[Verdict]) -> Table:
    """The GPUs at certain percentiles of the peaks, one row each."""
    known = sorted(verdicts, key=_figure)
    rows = []
    for name, fraction in SPREAD:
        one = known[round(fraction * (len(known) - 1))]
        rows.append((name, _gb(_figure(one) or None), label(one), one.host, one.device))
    counts = ", ".join(
        f"{count} {judgement}"
        for judgement in ("met", "missed", "not judged")
        if (count := sum(one.judgement == judgement for one in verdicts))
    )
    return Table(
        f"The peaks of all {counted(len(verdicts), 'GPU')}",
        ("", "peak", "of", "host", "device"),
        tuple(rows),
        note=f"The target: {counts}. Each GPU is in summary.json.",
    )


def _hosts(verdicts: Sequence[Verdict]) -> Table:
    by_host: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_host.setdefault(verdict.host, []).append(verdict)
    order = sorted(
        by_host.items(),
        key=lambda host: (
            -sum(one.judgement == "missed" for one in host[1]),
            -max(_figure(one) for one in host[1]),
        ),
    )
    rows, kinds = [], []
    for host, those in order[:MAX_NUM_HOSTS]:
        top, num_missed = max(those, key=_figure), sum(one.judgement == "missed" for one in those)
        lowest = min(_figure(one) for one in those)
        rows.append(
            (host, str(len(those)), _gb(_figure(top) or None), label(top), _gb(lowest or None), str(num_missed))
        )
        kinds.append("missed" if num_missed else "")
    title = (
        f"{len(rows)} of {counted(len(by_host), 'host')}, the fullest first"
        if len(rows) < len(by_host)
        else "Each host"
    )
    return Table(title, ("host", "GPUs", "highest", "of", "lowest", "missed"), tuple(rows), tuple(kinds))


def _figure(verdict: Verdict) -> int:
    return verdict.peak_bytes or verdict.resident_bytes or 0


def prediction_table(summary: Summary) -> Table | None:
    """Planned against measured bytes of the GPU with the highest peak."""
    worst = fullest(summary.verdicts)
    if worst is None or not worst.predictions:
        return None
    rows = tuple(
        (
            one.quantity,
            format_bytes(one.planned_bytes),
            _band(one.low_bytes, one.high_bytes),
            format_bytes(one.measured_bytes),
            format_error(one),
        )
        for one in worst.predictions
    )
    header = ("", "planned", "expected between", "measured", "error")
    return Table(f"Planned against measured, {label(worst)}", header, rows)


def phase_table(findings: Findings, summary: Summary) -> Table | None:
    """The highest value of any GPU in each training phase."""
    if not findings.marks or not findings.histories:
        return None
    phases = (None, *dict.fromkeys(name for _, name in findings.marks))
    labels = {verdict.source: label(verdict) for verdict in summary.verdicts}
    rows = []
    for phase in phases:
        peaks = [
            (history.phase_peaks[phase], labels[history.measured.source])
            for history in findings.histories
            if phase in history.phase_peaks
        ]
        if peaks:
            highest, whose = max(peaks)
            lowest = min(peaks)[0]
            rows.append(
                ("before training" if phase is None else phase, format_bytes(highest), whose, format_bytes(lowest))
            )
    if not rows:
        return None
    return Table("Peak in each phase", ("", "highest", "of", "lowest of all"), tuple(rows))


def step_table(findings: Findings) -> Table | None:
    """A dozen steps at even distances, including the first and the last."""
    steps = findings.steps
    count = len(steps)
    if not count:
        return None
    places = sorted({round(index * (count - 1) / max(1, NUM_STEP_ROWS - 1)) for index in range(NUM_STEP_ROWS)})
    columns = steps.columns
    rows = tuple(
        (
            str(steps.numbers[place]),
            steps.phases[place],
            _number(columns["loss"][place], ".4f"),
            _number(columns["learning_rate"][place], ".3g"),
            _number(columns["grad_norm"][place], ".3g"),
            _number(columns["tokens_per_s"][place], ",.0f"),
        )
        for place in places
    )
    title = "Steps" if len(places) == count else f"{len(places)} of {counted(count, 'step')}"
    return Table(title, ("step", "phase", "loss", "learning rate", "gradient norm", "tokens/s"), rows)


def start_table(findings: Findings) -> Table | None:
    """The seconds of each stage of the ranks' start, for the ranks that the chart shows."""
    shown = slowest(findings.starts)
    if not shown:
        return None
    stages = in_order({stage.name for start in shown for stage in start.stages})
    is_on_one_host = len({start.host for start in findings.starts}) == 1
    has_failed = findings.progress.state in ("failed", "interrupted", "silent")
    rows = tuple(
        (
            f"rank {start.rank}",
            "" if is_on_one_host else start.host,
            *(_stage_cell(start, name) for name in stages),
            standing(start),
        )
        for start in shown
    )
    kinds = tuple("missed" if has_failed and start.end_s is None else "" for start in shown)
    title = "Seconds of each stage"
    if len(shown) < len(findings.starts):
        title += f", the slowest {len(shown)} of {counted(len(findings.starts), 'rank')}"
    return _without_empty_columns(Table(title, ("", "host", *stages, "first step ended"), rows, kinds))


def _stage_cell(start: RankStart, name: str) -> str:
    last = start.stages[-1]
    if last.name == name and last.end_s is None:
        return f"from {last.begin_s:.2f} s"
    seconds = start.seconds_in(name)
    return "" if seconds is None else f"{seconds:.2f}"


def run_table(findings: Findings, summary: Summary) -> Table:
    """What was run."""
    asked, progress = findings.asked, findings.progress
    start = next((event for event in reversed(findings.events) if event.kind == "start"), None)
    facts = start.facts if start else {}
    rows = [("folder", str(findings.run_dir)), ("state", progress.text)]
    if progress.started_s is not None:
        rows.append(("started", _date(progress.started_s)))
    last_s = progress.ended_s or progress.last_record_s
    if progress.started_s is not None and last_s is not None:
        name = "took" if progress.ended_s is not None else "so far"
        rows.append((name, format_duration(max(0.0, last_s - progress.started_s))))
    rows += _model_rows(asked)
    if asked.world_size is not None:
        device = facts.get("device")
        rows.append(("world", counted(asked.world_size, "rank") + (f" on {device}" if device else "")))
    hosts = list(dict.fromkeys(history.measured.host for history in findings.histories if history.measured.host))
    if hosts:
        more = f" and {len(hosts) - 4} more" if len(hosts) > 4 else ""
        rows.append(("hosts", ", ".join(hosts[:4]) + more))
    rows += _batch_rows(asked)
    changes = [event for event in findings.events if event.kind == "resume" and event.facts.get("changed")]
    for event in changes:
        said = "; ".join(str(line) for line in event.facts["changed"])
        rows.append((f"changed at step {event.facts.get('step', '?')}", said))
    if asked.command:
        rows.append(("command", shlex.join(asked.command)))
    versions = facts.get("versions")
    if isinstance(versions, dict):
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    if summary.num_steps:
        rows.append(("tokens", f"{format_count(summary.num_tokens)} in {counted(summary.num_steps, 'step')}"))
    if summary.unigram_entropy_nats is not None:
        rows.append(("unigram entropy", f"{summary.unigram_entropy_nats:.4f} (the loss of token frequencies alone)"))
    if summary.data_wait_fraction is not None:
        rows.append(("waiting for data", f"{100 * summary.data_wait_fraction:.1f}% of the time"))
    rows += [("not readable", problem) for problem in findings.problems]
    return Table("What was run", ("", ""), tuple(rows))


def event_table(findings: Findings) -> Table | None:
    """The events; if there are very many, the errors and the last ones."""
    events = list(findings.events)
    note = ""
    if len(events) > MAX_NUM_EVENTS:
        weighty = [place for place, event in enumerate(events) if event.kind in (ERROR, INTERRUPTED, MONITOR_EVENT)]
        kept = {*weighty[:MAX_NUM_EVENTS], *range(len(events) - MAX_NUM_EVENTS, len(events))}
        note = f"{len(events) - len(kept)} more are in records/events.jsonl."
        events = [events[place] for place in sorted(kept)]
    if not events:
        return None
    rows = tuple((clock(event.time_s), event.kind, event.message) for event in events)
    return Table("Events", ("time", "kind", "what"), rows, tuple(_event_kind(event) for event in events), note)


def compare_table(runs: Sequence[Compared]) -> Table:
    """The runs side by side, one column each."""
    columns = [_compare_column(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = tuple((name, *(column.get(name, "") for column in columns)) for name in names)
    return Table("Side by side", ("", *(run.name for run in runs)), tuple(row for row in rows if any(row[1:])))


def deepspeed_text(asked: Asked) -> str | None:
    return None if asked.deepspeed is None else json.dumps(asked.deepspeed, indent=2)


def _gpus(verdicts: Sequence[Verdict], title: str) -> Table:
    header: tuple[str, ...]
    on_cpu = all(one.device == CPU for one in verdicts)
    if on_cpu:
        title = title.replace("GPU", "rank") if verdicts and verdicts[0].rank is not None else "The host"
        header = ("", "host", "CPU allocator's peak", "planned", "error", "resident set", "verdict")
    else:
        header = ("", "host and device", "peak", "target", "left", "reduction")
        header += ("planned", "error", "GPU has", "verdict")
    rows = tuple(_cpu_row(one) if on_cpu else _gpu_row(one) for one in verdicts)
    return _without_empty_columns(Table(title, header, rows, tuple(one.judgement for one in verdicts)))


def _without_empty_columns(table: Table) -> Table:
    kept = [place for place in range(len(table.header)) if any(row[place] for row in table.rows)]
    return replace(
        table,
        header=tuple(table.header[place] for place in kept),
        rows=tuple(tuple(row[place] for place in kept) for row in table.rows),
    )


def _gpu_row(one: Verdict) -> tuple[str, ...]:
    planned = main_prediction(one)
    return (
        label(one),
        f"{one.host} {short_device(one.device)}",
        _gb(one.peak_bytes),
        _gb(one.target_bytes, unknown=""),
        _gb(one.target_headroom_bytes, unknown=""),
        "" if one.reduction is None else f"{100 * one.reduction:.1f}%",
        format_bytes(planned.planned_bytes) if planned else "",
        format_error(planned) if planned else "",
        _gb(one.device_bytes),
        one.judgement if one.judgement != "not judged" else f"not judged: {one.reason}",
    )


def _cpu_row(one: Verdict) -> tuple[str, ...]:
    planned = main_prediction(one)
    peak = max((one.allocator_bytes or {}).values(), default=None)
    return (
        label(one),
        one.host,
        _gb(peak, unknown=""),
        format_bytes(planned.planned_bytes) if planned else "",
        format_error(planned) if planned else "",
        _gb(one.resident_bytes),
        f"not judged: {one.reason}",
    )


def short_device(device: str) -> str:
    """'GPU-3f1c2a90' of a whole UUID: enough to tell GPUs apart."""
    return device if device == CPU else "-".join(device.split("-")[:2])


def _model_rows(asked: Asked) -> list[tuple[str, str]]:
    if asked.run is None:
        return []
    model = asked.run.model
    return [
        (
            "model",
            f"{asked.run.name}: {format_count(num_parameters(model))} parameters, "
            f"{counted(model.num_layers, 'layer')} x {model.hidden_size}, "
            f"vocabulary {model.vocab_size}, context {model.context_length}, {model.loss} loss",
        )
    ]


def _batch_rows(asked: Asked) -> list[tuple[str, str]]:
    if asked.deepspeed is None:
        return []
    return [
        ("batch", _batch(asked)),
        ("deepspeed", ", ".join(f"{key} {value}" for key, value in describe_deepspeed(asked.deepspeed).items())),
    ]


def _batch(asked: Asked) -> str:
    settings = asked.deepspeed or {}
    micro, accumulation = settings.get("train_micro_batch_size_per_gpu"), settings.get("gradient_accumulation_steps")
    return f"{settings.get('train_batch_size')} sequences a step: micro batch {micro} x accumulation {accumulation}"


def _compare_column(run: Compared) -> dict[str, str]:
    summary, asked = run.summary, run.findings.asked
    worst = fullest(summary.verdicts)
    so_far = "" if summary.verdict.is_final else ", so far"
    by_plan = summary.verdict.by_plan
    judgement = summary.verdict.judgement + so_far if by_plan is None else f"{by_plan} by plan"
    column = {"state": summary.state_text, "verdict": judgement}
    if worst is not None:
        planned = main_prediction(worst)
        column |= {
            "peak of the fullest": f"{_gb(worst.peak_bytes)} ({label(worst)})" if worst.device != CPU else "",
            "CPU allocator's peak": _gb(max((worst.allocator_bytes or {}).values(), default=None), unknown=""),
            "resident set": _gb(worst.resident_bytes),
            "target": _gb(worst.target_bytes, unknown="none"),
            "reduction": "" if worst.reduction is None else f"{100 * worst.reduction:.1f}%",
            "planned": f"{format_bytes(planned.planned_bytes)} ({format_error(planned)})" if planned else "",
        }
    column |= {
        "steps": str(summary.num_steps),
        "tokens": format_count(summary.num_tokens),
        "loss": f"{_optional(summary.last_loss, '.4f')} ({of_last_steps(summary)})" if summary.num_steps else "",
        "validation loss": _optional(summary.validation_loss, ".4f"),
        "tokens/s": _optional(summary.median_tokens_per_s, ",.0f"),
        "waiting for data": "" if summary.data_wait_fraction is None else f"{100 * summary.data_wait_fraction:.1f}%",
        "training time": format_duration(summary.train_s),
        "ranks": str(asked.world_size or ""),
    }
    column |= dict(_model_rows(asked))
    if asked.deepspeed is not None:
        column["batch"] = _batch(asked)
        column |= describe_deepspeed(asked.deepspeed)
    return column


def _event_kind(event: Event) -> str:
    return {ERROR: "missed", INTERRUPTED: "missed", MONITOR_EVENT: "not judged"}.get(event.kind, "")


def _gb(num_bytes: int | None, *, unknown: str = UNKNOWN) -> str:
    return unknown if num_bytes is None else format_bytes(num_bytes)


def _band(low_bytes: int, high_bytes: int) -> str:
    return f"{format_bytes(low_bytes)} and {format_bytes(high_bytes)}" if low_bytes != high_bytes else ""


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else ""


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _date(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(time_s))
