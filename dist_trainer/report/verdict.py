"""The verdict on a run as a whole, and the words for verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dist_trainer.memory.advice.outcome import Standing, target_standing
from dist_trainer.memory.plan import Plan
from dist_trainer.memory.targets import CPU, NO_GPU, Judgement, Prediction, Verdict
from dist_trainer.report.reading.progress import Progress
from dist_trainer.units import format_bytes


@dataclass(frozen=True)
class RunVerdict:
    """`judgement`: 'met' if every GPU met the target, 'missed' if at least one did not. `is_final`: False until the run
    has come to its end. `by_plan`: for a run on a CPU that has a target, whether the plan for GPUs would meet it.
    `advice`: what to change where the target was missed, the most promising first.
    """

    judgement: Judgement
    by_plan: Literal["met", "missed"] | None
    is_final: bool
    sentence: str
    advice: tuple[str, ...]
    notes: tuple[str, ...]


def run_verdict(
    verdicts: Sequence[Verdict],
    progress: Progress,
    *,
    on_gpu: Plan | None = None,
    advice: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> RunVerdict:
    """`notes` are about the whole run; notes about single GPUs are added to them."""
    would_stand = target_standing(on_gpu) if on_gpu is not None and is_on_cpu(verdicts) else None
    by_note: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        for note in verdict.notes:
            by_note.setdefault(note, []).append(verdict)
    on_gpus = [note if len(those) == len(verdicts) else f"{_some(those)}: {note}" for note, those in by_note.items()]
    return RunVerdict(
        judgement=_overall(verdicts),
        by_plan=None if would_stand is None else "missed" if would_stand.state == "over" else "met",
        is_final=progress.is_final,
        sentence=_sentence(verdicts, progress, would_stand),
        advice=tuple(advice),
        notes=(*notes, *on_gpus),
    )


def strict_problem(verdict: RunVerdict) -> str | None:
    """Why `--strict` fails, in one line; None if it passes. A target that could not be judged fails."""
    if verdict.judgement == "missed":
        return verdict.sentence
    if verdict.judgement == "not judged":
        return f"what is not known does not pass. {verdict.sentence}"
    if not verdict.is_final:
        return f"the run has not come to its end. {verdict.sentence}"
    return None


def is_on_cpu(verdicts: Sequence[Verdict]) -> bool:
    """Whether all ranks ran on CPUs, so that there was no GPU memory to judge."""
    return bool(verdicts) and all(verdict.reason == NO_GPU for verdict in verdicts)


def fullest(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The GPU with the highest peak; on CPUs the rank with the highest known figure."""
    return max(verdicts, key=_order, default=None)


def label(verdict: Verdict) -> str:
    """'rank 3', 'GPU 0' of a watched program, 'host'."""
    kind, _, number = verdict.source.partition("-")
    return f"{'GPU' if kind == 'gpu' else kind} {number}".strip()


def describe(verdict: Verdict) -> str:
    """'2.31 GB of 2.50 GB: met (42% below 4.00 GB); planned 2.20 GB (-4.8%)'; for a GPU that is not judged, the reason
    and what is known.
    """
    if verdict.judgement == "not judged" or verdict.target_bytes is None or verdict.peak_bytes is None:
        text = f"{_known(verdict)}; not judged: {verdict.reason}"
    else:
        text = f"{format_bytes(verdict.peak_bytes)} of {format_bytes(verdict.target_bytes)}: {verdict.judgement}"
    if verdict.reduction is not None and verdict.baseline_bytes is not None:
        text += f" ({_side(verdict.reduction, digits=0)} {format_bytes(verdict.baseline_bytes)})"
    planned = main_prediction(verdict)
    if planned is not None:
        text += f"; {_planned(planned)}"
    return text


def main_prediction(verdict: Verdict) -> Prediction | None:
    """The plan held against NVML's figure, or on a CPU against the CPU allocator's peak; None if there is no plan."""
    wanted = "CPU allocator" if verdict.device == CPU else "NVML used"
    return next((found for found in verdict.predictions if found.quantity == wanted), None)


def format_error(prediction: Prediction) -> str:
    return f"{prediction.error_percent:+.1f}%"


def _some(those: Sequence[Verdict]) -> str:
    return label(those[0]) if len(those) == 1 else f"{len(those)} GPUs"


def _overall(verdicts: Sequence[Verdict]) -> Judgement:
    found = {verdict.judgement for verdict in verdicts}
    if "missed" in found:
        return "missed"
    return "met" if found == {"met"} else "not judged"


def _order(verdict: Verdict) -> tuple[int, int]:
    if verdict.peak_bytes is not None:
        return 2, verdict.peak_bytes
    if verdict.allocator_bytes:
        return 1, max(verdict.allocator_bytes.values())
    return 0, verdict.resident_bytes or 0


def _sentence(verdicts: Sequence[Verdict], progress: Progress, would_stand: Standing | None) -> str:
    text = _judged(verdicts, would_stand)
    if progress.state == "finished":
        return text
    lead = {
        "running": f"{_capital(progress.text)}. So far: ",
        "failed": f"The run {progress.text}. Up to then: ",
        "interrupted": f"The run was {progress.text}. Up to then: ",
        "silent": f"{_capital(progress.text)}. Up to then: ",
    }[progress.state]
    return lead + text[:1].lower() + text[1:]


def _judged(verdicts: Sequence[Verdict], would_stand: Standing | None) -> str:
    worst = fullest(verdicts)
    if worst is None:
        return "Not judged: there are no memory records."
    if is_on_cpu(verdicts):
        return _on_cpu(worst, would_stand)
    if _overall(verdicts) == "not judged":
        return _not_judged(verdicts, worst)
    if worst.peak_bytes is None or worst.target_bytes is None:
        raise AssertionError("what was judged has a peak and a target")
    missed = [verdict for verdict in verdicts if verdict.judgement == "missed"]
    count = len(verdicts)
    peak, target = format_bytes(worst.peak_bytes), format_bytes(worst.target_bytes)
    if missed:
        where = (
            "" if count == 1 else f" on {len(missed)} of {count} GPUs" if len(missed) < count else f" on {_all(count)}"
        )
        text = f"Target missed{where}: {label(worst)} peaked at {peak}, "
        text += f"{format_bytes(worst.peak_bytes - worst.target_bytes)} over the target of {target}"
    else:
        where = "" if count == 1 else f" on {_all(count)}"
        which = label(worst) if count == 1 else f"the fullest, {label(worst)},"
        text = f"Target met{where}: {which} peaked at {peak} of {target}"
    if worst.reduction is not None and worst.baseline_bytes is not None:
        text += (
            f", {_side(worst.reduction, digits=1)} the baseline of {format_bytes(worst.baseline_bytes)} "
            f"({worst.baseline_origin})"
        )
    planned = main_prediction(worst)
    return text + (f"; {_planned(planned)}." if planned else ".")


def _all(count: int) -> str:
    return "both GPUs" if count == 2 else f"all {count} GPUs"


def _on_cpu(worst: Verdict, would_stand: Standing | None) -> str:
    planned = main_prediction(worst)
    text = f"{_capital(label(worst))} peaked at {_known(worst)}{f'; {_planned(planned)}' if planned else ''}."
    if would_stand is None:
        return f"On a CPU: there is no GPU to judge. {text}"
    needed, target = format_bytes(would_stand.needed.num_bytes), format_bytes(would_stand.limit_bytes)
    how = "missed" if would_stand.state == "over" else "met"
    return f"Target {how} by plan: a GPU would need {needed} of {target}. This run was on a CPU. {text}"


def _not_judged(verdicts: Sequence[Verdict], worst: Verdict) -> str:
    open_ones = [verdict for verdict in verdicts if verdict.judgement == "not judged"]
    reasons: dict[str, list[Verdict]] = {}
    for verdict in open_ones:
        reasons.setdefault(verdict.reason, []).append(verdict)
    said = []
    for reason, those in list(reasons.items())[:3]:
        where = "" if len(those) == len(verdicts) else f"{_some(those)}: "
        said.append(f"{where}{reason}")
    more = ", and others" if len(reasons) > 3 else ""
    text = f"Not judged: {'; '.join(said)}{more}. {_capital(label(worst))} peaked at {_known(worst)}"
    if worst.reduction is not None and worst.baseline_bytes is not None:
        side = _side(worst.reduction, digits=1)
        text += f", {side} the baseline of {format_bytes(worst.baseline_bytes)} ({worst.baseline_origin})"
    planned = main_prediction(worst)
    return text + (f"; {_planned(planned)}." if planned else ".")


def _known(verdict: Verdict) -> str:
    if verdict.peak_bytes is not None:
        text = f"{format_bytes(verdict.peak_bytes)} used"
        if verdict.target_bytes is not None:
            text += f" of {format_bytes(verdict.target_bytes)}"
        return text
    found = []
    if verdict.allocator_bytes:
        found.append(f"{format_bytes(max(verdict.allocator_bytes.values()))} by the CPU allocator")
    if verdict.resident_bytes is not None:
        found.append(f"{format_bytes(verdict.resident_bytes)} resident")
    return ", ".join(found) or "an amount that is not known"


def _planned(prediction: Prediction) -> str:
    return f"planned {format_bytes(prediction.planned_bytes)} ({format_error(prediction)})"


def _side(reduction: float, *, digits: int) -> str:
    return f"{100 * abs(reduction):.{digits}f}% {'above' if reduction < 0 else 'below'}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
