"""Checkpoints in words for people, and in JSON for programs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dist_trainer.checkpoints import facts
from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.folder import Leftover
from dist_trainer.checkpoints.index import Index
from dist_trainer.checkpoints.resuming import Resuming
from dist_trainer.checkpoints.standing import Listing, Standing
from dist_trainer.encoding import all_as_utf8, printable
from dist_trainer.errors import UserError, cut
from dist_trainer.units import counted, format_bytes, format_count

_UNKNOWN = "-"
_COLUMNS = ("checkpoint", "tokens", "size", "ranks", "ZeRO", "precision", "made", "standing")


def listing(found: Listing) -> str:
    rows = [_COLUMNS, *(_row(standing, found) for standing in found.standings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [str(found.checkpoints_dir), ""]
    for row, standing in zip(rows, (None, *found.standings), strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        lines += [f"  {_said(damage)}" for damage in (standing.damages if standing else ())]
    lines += ["", *(f"leftover   {_left(leftover)}" for leftover in found.leftovers)]
    latest = found.latest
    lines.append(f"latest     {_said(latest) if isinstance(latest, DamageError) else latest}")
    if isinstance(found.resumed, UserError):
        lines.append(f"resume     --resume auto is refused: {found.resumed.problem}")
    else:
        takes = "starts from the beginning" if found.resumed is None else f"takes {found.resumed.name}"
        lines.append(f"resume     --resume auto {takes}")
    lines += [f"notice     {notice}" for notice in found.notices]
    return text(lines)


def listing_json(found: Listing) -> Mapping[str, Any]:
    """`latest` and `resumed` are null where they name none; sizes are in bytes, `made_s` in seconds since 1970."""
    resumed, latest = found.resumed, found.latest
    return _plain(
        {
            "checkpoints_dir": str(found.checkpoints_dir),
            "latest": latest if isinstance(latest, str) else None,
            "resumed": resumed.name if isinstance(resumed, Path) else None,
            "refusal": resumed.problem if isinstance(resumed, UserError) else None,
            "notices": list(found.notices),
            "checkpoints": [_standing_json(standing) for standing in found.standings],
            "leftovers": [
                {"name": one.path.name, "what": one.what, "becomes_checkpoint": one.becomes_checkpoint}
                for one in found.leftovers
            ],
        }
    )


def inspection(standing: Standing, index: Index, resuming: Resuming | None) -> str:
    made, position, counters = index.made_by, index.position, index.counters
    model = ", ".join(f"{key} {_value(value)}" for key, value in facts.model_of(made).items())
    elements, parameters = facts.num_elements(index), len(index.parameters)
    versions = ", ".join(f"{name} {version}" for name, version in made.versions.items())
    ranks, stage = counted(made.world_size, "rank"), _value(facts.stage_of(made))
    lines = [
        f"checkpoint {standing.folder}",
        f"made       {_date(standing.made_s)} "
        + (
            f"by {ranks}, ZeRO {stage}, {facts.precision_of(made)}, {_value(facts.optimizer_of(made))}"
            if made.imported_from is None
            else f"from {made.imported_from}"
        ),
        *([f"versions   {versions}"] if versions else []),
        f"files      {counted(len(index.files), 'file')}, {format_bytes(index.num_bytes)}; "
        + ("damaged" if standing.damages else "whole by their sizes (`verify` reads every byte)"),
        *(f"damaged    {_said(damage)}" for damage in standing.damages),
        f"model      {model}",
        f"parameters {format_count(elements)} ({elements}) in {counted(parameters, 'tensor')}",
    ]
    for name, state in facts.states_of(index).items():
        some = "" if state.num_parameters == parameters else f", of {counted(state.num_parameters, 'tensor')}"
        lines.append(f"state      {name}: {' and '.join(state.dtypes)}, {format_bytes(state.num_bytes)}{some}")
    skipped = f", of which {counters.skipped_steps} skipped" if counters.skipped_steps else ""
    lines.append(f"position   step {position.step}{skipped}, {format_count(facts.num_tokens(index))} tokens")
    lines += [
        f"phase      {name}: {counted(progress.steps, 'step')}, {counted(progress.tokens, 'token')}"
        for name, progress in position.phases.items()
    ]
    lines += [
        f"data       {phase}: {data.path} ({counted(data.num_tokens, 'token')})" for phase, data in made.data.items()
    ]
    if counters.loss_scaler:
        scaler = ", ".join(f"{name} {value:g}" for name, value in counters.loss_scaler.items())
        lines.append(f"loss scale {scaler}")
    return text([*lines, *([] if resuming is None else ["", *_resuming(resuming)])])


def inspection_json(standing: Standing, index: Index, resuming: Resuming | None) -> Mapping[str, Any]:
    """Sizes are in bytes, `made_s` in seconds since 1970. `resuming` is null where it was not asked for."""
    made, position = index.made_by, index.position
    return _plain(
        {
            **_standing_json(standing),
            "folder": str(standing.folder),
            "optimizer": facts.optimizer_of(made),
            "versions": dict(made.versions),
            "imported_from": made.imported_from,
            "model": dict(facts.model_of(made)),
            "num_parameters": facts.num_elements(index),
            "num_tensors": len(index.parameters),
            "states": {
                name: {"dtypes": list(state.dtypes), "bytes": state.num_bytes, "num_tensors": state.num_parameters}
                for name, state in facts.states_of(index).items()
            },
            "phases": {name: {"steps": one.steps, "tokens": one.tokens} for name, one in position.phases.items()},
            "data": {phase: {"path": one.path, "num_tokens": one.num_tokens} for phase, one in made.data.items()},
            "skipped_steps": index.counters.skipped_steps,
            "loss_scaler": dict(index.counters.loss_scaler),
            "resuming": None if resuming is None else _resuming_json(resuming),
        }
    )


def _resuming(resuming: Resuming) -> list[str]:
    what = f"{resuming.config} with {resuming.deepspeed} on {counted(resuming.world_size, 'rank')}"
    refusal = resuming.refusal
    if refusal is not None:
        return [
            f"resume     {what}: refused",
            f"refused    {refusal.key} is {_value(refusal.found)}; expected {refusal.expected}",
        ]
    lines = [f"resume     {what}: yes"]
    lines += [f"changed    {line}" for line in resuming.differences] or ["changed    nothing"]
    lines += [
        f"notice     the data of phase {phase} is made when a run starts: not compared"
        for phase in resuming.without_data
    ]
    read, verified = format_bytes(resuming.states_bytes), format_bytes(resuming.verified_bytes)
    return [
        *lines,
        f"reads      each rank {read} of weights and states, and before that {verified} to verify its share",
    ]


def _resuming_json(resuming: Resuming) -> dict[str, Any]:
    refusal = resuming.refusal
    return {
        "config": resuming.config,
        "deepspeed": resuming.deepspeed,
        "world_size": resuming.world_size,
        "refusal": None
        if refusal is None
        else {"key": refusal.key, "found": refusal.found, "expected": refusal.expected},
        "differences": list(resuming.differences),
        "states_bytes": resuming.states_bytes,
        "verified_bytes": resuming.verified_bytes,
        "without_data": list(resuming.without_data),
    }


def _standing_json(standing: Standing) -> dict[str, Any]:
    index = standing.index
    return {
        "name": standing.folder.name,
        "step": index and index.position.step,
        "tokens": index and facts.num_tokens(index),
        "bytes": index and index.num_bytes,
        "ranks": index and index.made_by.world_size,
        "stage": index and facts.stage_of(index.made_by),
        "precision": index and facts.precision_of(index.made_by),
        "made_s": standing.made_s,
        "damages": [{"file": str(damage.file), "problem": damage.problem} for damage in standing.damages],
    }


def _row(standing: Standing, found: Listing) -> tuple[str, ...]:
    index, name = standing.index, standing.folder.name
    said = ["damaged" if standing.damages else "whole"]
    said += ["named by latest"] if name == found.latest else []
    said += ["resumed from"] if isinstance(found.resumed, Path) and name == found.resumed.name else []
    date, standing_said = _date(standing.made_s), ", ".join(said)
    if index is None:
        return (name, *(_UNKNOWN,) * 5, date, standing_said)
    return (
        name,
        format_count(facts.num_tokens(index)),
        format_bytes(index.num_bytes),
        str(index.made_by.world_size),
        _value(facts.stage_of(index.made_by)),
        facts.precision_of(index.made_by),
        date,
        standing_said,
    )


def _left(leftover: Leftover) -> str:
    if leftover.becomes_checkpoint:
        return f"{leftover.path.name} is whole: the next start makes it {leftover.name}"
    what = {
        "saving": f"a save of {leftover.name} that goes on, or was cut off",
        "replaced": f"{leftover.name} before it was saved again",
        "deleting": f"{leftover.name}, which is being deleted",
    }
    return f"{leftover.path.name}: {what[leftover.what]}; the next start removes it"


def _said(damage: DamageError) -> str:
    return f"{damage.file.name} {damage.problem}"


def _value(value: object) -> str:
    return _UNKNOWN if value is None else cut(str(value))


def _date(time_s: float | None) -> str:
    return _UNKNOWN if time_s is None else time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(time_s))


def text(lines: Sequence[str]) -> str:
    """Of lines that may quote a stranger's checkpoint: without control characters."""
    # A name or a setting may have a line end in it.
    return "".join(printable(line).replace("\n", "\\n") + "\n" for line in lines)


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = all_as_utf8(value)
    return plain
