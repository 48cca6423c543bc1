"""Another run as the baseline: its measured peak takes the place of the figure in the run file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dist_trainer.config.run import ModelConfig
from dist_trainer.errors import UserError
from dist_trainer.memory.targets import CPU, NO_GPU, NO_READING, Baseline
from dist_trainer.report.reading.findings import Findings, read_findings, require_records

SWITCH = "--baseline"
# The keys that make it the same model; dropout and the form of the loss are settings that may differ.
SHAPE = ("num_layers", "hidden_size", "num_heads", "vocab_size", "context_length")


def read_baseline(run_dir: Path, model: ModelConfig | None, deepspeed: Mapping[str, Any] | None) -> Baseline:
    """The highest peak of any GPU in that run. `model` and `deepspeed` are those of the run to be compared with it.

    Raises UserError if that run's peak is not known to its end, or if its model is another one.
    """
    require_records(run_dir, where=SWITCH)
    findings = read_findings(run_dir)
    _require_same_model(findings, model)
    _require_known_peak(findings)
    peaks = [history.measured.used_bytes for history in findings.histories]
    return Baseline(
        num_bytes=max(peak for peak in peaks if peak is not None),
        run_dir=str(run_dir),
        notes=tuple(_differences(findings.asked.deepspeed, deepspeed)),
    )


def _require_same_model(findings: Findings, model: ModelConfig | None) -> None:
    theirs = findings.asked.run.model if findings.asked.run else None
    if theirs is None and model is None:
        return
    if theirs is None or model is None:
        raise UserError(
            "it is not known whether the baseline is of the same model",
            where=SWITCH,
            found=str(findings.run_dir),
            expected="two training runs, or two programs that `monitor` watched",
        )
    for name in SHAPE:
        if getattr(theirs, name) != getattr(model, name):
            raise UserError(
                "the baseline is of another model",
                where=f"{SWITCH} {findings.run_dir}",
                key=f"model.{name}",
                found=getattr(theirs, name),
                expected=str(getattr(model, name)),
                hint="name a run of this model, or leave the switch out: then the run file's figure is compared with",
            )


def _require_known_peak(findings: Findings) -> None:
    reason = None
    if not findings.progress.is_final:
        reason = findings.progress.text
    elif not findings.histories:
        reason = "it has no memory records"
    elif findings.is_without_steps:
        reason = "it took no step"
    for history in findings.histories:
        measured = history.measured
        if reason is None and measured.used_bytes is None:
            reason = f"{measured.source}: {NO_GPU if measured.device == CPU else NO_READING}"
        if reason is None and measured.unknown is not None:
            reason = f"{measured.source}: {measured.unknown}"
    if reason is not None:
        raise UserError(
            "the baseline's peak device memory was not measured, so nothing can be compared with it",
            where=SWITCH,
            found=f"{findings.run_dir}: {reason}",
            expected="a run that came to its end, with readings of every GPU by NVML",
            hint="leave the switch out: then the run file's figure is compared with",
        )


def _differences(theirs: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> Iterator[str]:
    """The differences that make the comparison unfair, in words."""
    key = "train_batch_size"
    if theirs and ours and theirs.get(key) != ours.get(key):
        yield f"the baseline took {theirs.get(key)} sequences a step, this run {ours.get(key)}"
