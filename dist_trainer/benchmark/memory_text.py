"""The rows of docs/memory.md as Markdown, and their insertion into that file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from dist_trainer.benchmark.memory_table import MemoryRow
from dist_trainer.errors import UserError
from dist_trainer.units import GB

BEGIN = "<!-- memory table: begin -->"
END = "<!-- memory table: end -->"
NOTHING = "–"


@dataclass(frozen=True)
class _Column:
    """A heading, and the cell's text as a function of a row and its baseline (None if that is not in the table)."""

    heading: str
    cell: Callable[[MemoryRow, MemoryRow | None], str]


def table_text(rows: Sequence[MemoryRow]) -> str:
    """One table per run file; bytes are shown in GB (10^9)."""
    columns = _columns(with_gpus=any(row.device_peaks for row in rows))
    tables = []
    for config, of_config in groupby(rows, key=lambda row: row.setting.config):
        group = list(of_config)
        baseline = next((row for row in group if row.setting.is_baseline), None)
        target_bytes = group[0].target_bytes
        title = config.capitalize() + (f" (target {_gb(target_bytes)} GB)" if target_bytes else "")
        lines = [
            f"### {title}",
            "",
            _line([column.heading for column in columns]),
            _line(["---", *("---:" for _ in columns[1:])]),
            *(_line([column.cell(row, baseline) for column in columns]) for row in group),
        ]
        tables.append("\n".join(lines))
    return "\n\n".join(tables) + "\n"


def write_table(text: str, path: Path) -> None:
    """Replaces what is between the file's markers. Raises UserError if it has none."""
    before, after = around_table(path)
    path.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def around_table(path: Path) -> tuple[str, str]:
    """The file's text before and after the table. Raises UserError if it has no markers for one."""
    whole = path.read_text(encoding="utf-8") if path.exists() else ""
    before, _, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise UserError(
            "there is no place for the table in this file", where=str(path), expected=f"lines {BEGIN} and {END}"
        )
    return before, after


def _columns(*, with_gpus: bool) -> list[_Column]:
    columns = [
        _Column("setting", lambda row, _: row.setting.ds),
        _Column("GPUs", lambda row, _: str(row.setting.num_gpus)),
        _Column("micro batch x accumulation", lambda row, _: f"{row.micro_batch} x {row.accumulation}"),
        _Column("allocated", lambda row, _: _gb(row.on_gpu.allocated.num_bytes)),
        _Column("reserved", lambda row, _: _gb(row.on_gpu.reserved.num_bytes)),
        _Column("NVML", lambda row, _: _gb(row.planned_used_bytes)),
        _Column("saved", lambda row, base: _saved(row, base, lambda row: row.planned_used_bytes)),
        _Column("target", lambda row, _: _target(row)),
        _Column("measured on the CPU", lambda row, _: _gb(_measured_bytes(row)) + _mark(row)),
        _Column("plan's error", lambda row, _: NOTHING if row.error is None else f"{row.error:+.2%}"),
        _Column("saved, measured", lambda row, base: NOTHING if _is_mixed(row) else _saved(row, base, _measured_bytes)),
    ]
    if with_gpus:
        columns.append(_Column("NVML, measured", lambda row, _: _gb(_used_bytes(row))))
        columns.append(_Column("saved, NVML", lambda row, base: _saved(row, base, _used_bytes)))
    return columns


def _is_mixed(row: MemoryRow) -> bool:
    """Whether the measured figure includes what a GPU run would keep on the host."""
    return row.is_offloaded and row.measured is not None


def _mark(row: MemoryRow) -> str:
    """`*`: the figure includes what is offloaded. `†`: the peak is the building of the model, which a GPU run does on
    the host.
    """
    if row.measured is None:
        return ""
    if row.is_offloaded:
        return "*"
    return "†" if row.on_cpu.peak_phase == "init" and row.on_gpu.peak_phase != "init" else ""


def _measured_bytes(row: MemoryRow) -> int | None:
    return None if row.measured is None else row.measured.peak_bytes


def _used_bytes(row: MemoryRow) -> int | None:
    return None if row.device_peaks is None else row.device_peaks.used_bytes


def _saved(row: MemoryRow, baseline: MemoryRow | None, figure: Callable[[MemoryRow], int | None]) -> str:
    if baseline is None or row.setting.is_baseline:
        return NOTHING
    now, before = figure(row), figure(baseline)
    return NOTHING if now is None or not before else f"{1 - now / before:.0%}"


def _target(row: MemoryRow) -> str:
    if row.target_bytes is None or row.setting.is_baseline:
        return NOTHING
    return "met" if row.planned_used_bytes <= row.target_bytes else "missed"


def _gb(num_bytes: int | None) -> str:
    return NOTHING if num_bytes is None else f"{num_bytes / GB:.2f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
