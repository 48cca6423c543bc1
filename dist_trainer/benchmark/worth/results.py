"""A benchmark's results: results.json, whose schema docs/benchmark.md documents, and results.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_trainer import typed_json
from dist_trainer.benchmark.worth.cells import Cell
from dist_trainer.benchmark.worth.contributions import Contributions, contributions
from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.benchmark.worth.rows import MatmulRates, Row, make_rows
from dist_trainer.cache import write_whole
from dist_trainer.encoding import all_as_utf8
from dist_trainer.errors import UserError
from dist_trainer.typed_json import Count, Seconds

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

JSON_FILE, CSV_FILE = "results.json", "results.csv"
# Rises with every change that would mislead a reader of the previous version; a new key does not.
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Environment:
    """What was measured, and where. `hardware` in words, as the folder's name has it; `num_threads` is of each rank."""

    model_size: str
    sequence_length: Count
    num_steps: Count
    num_ranks: Count
    num_threads: Count
    hardware: str
    started_s: Seconds
    revision: str | None
    versions: Mapping[str, str]
    rates: MatmulRates


@dataclass(frozen=True)
class Results:
    schema_version: Count
    environment: Environment
    rows: Sequence[Row]
    contributions: Contributions


@dataclass(frozen=True)
class _Version:
    """`kind`: what sort of benchmark the results are of; empty for one of optimisations."""

    schema_version: Count
    kind: str = ""


def make_results(
    cells: Sequence[Cell],
    measurements: Sequence[Measurement],
    environment: Environment,
    commands: Mapping[str, str],
) -> Results:
    """`commands`: by cell name, the command that runs it by itself. Cells not measured yet have a row too."""
    rows = make_rows(cells, measurements, commands=commands, rates=environment.rates)
    return Results(SCHEMA_VERSION, environment, tuple(rows), contributions(cells, measurements, rows))


def json_text(results: DataclassInstance) -> str:
    return json.dumps(all_as_utf8(asdict(results)), indent=1, allow_nan=False) + "\n"


def csv_text(results: Results) -> str:
    """A line a row; an estimate is three columns, and what is not known is empty."""
    return csv_of(results.rows, estimates=("speed", "ratio"))


def csv_of(rows: Sequence[DataclassInstance], *, estimates: Sequence[str]) -> str:
    """As `csv_text`, of rows of any dataclass; `estimates` names the fields that are estimates."""
    lines = [_flat(row, estimates) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def write_results(results: Results, folder: Path) -> tuple[Path, Path]:
    """Both files, each whole or not at all. Raises OSError."""
    return write_both(json_text(results), csv_text(results), folder)


def write_both(as_json: str, as_csv: str, folder: Path) -> tuple[Path, Path]:
    paths = (folder / JSON_FILE, folder / CSV_FILE)
    for path, text in zip(paths, (as_json, as_csv), strict=True):
        write_whole(path, text)
    return paths


def read_results(folder: Path) -> Results:
    """Raises UserError where the folder has none, or none that can be read."""
    path = folder / JSON_FILE
    try:
        found = typed_json.read(path, _Version)
        if found.kind:
            raise UserError(
                "these results are not of optimisations",
                where=str(path),
                key="kind",
                found=found.kind,
                expected="the results of `benchmark --all` or `--only`",
            )
        version = found.schema_version
        if version != SCHEMA_VERSION:
            raise UserError(
                "these results are of another version of the schema",
                where=str(path),
                key="schema_version",
                found=version,
                expected=str(SCHEMA_VERSION),
                hint="read them with the program that wrote them, or measure again",
            )
        return typed_json.read(path, Results)
    except OSError as error:
        raise UserError(
            f"there are no results to read: {error.strerror}",
            where=str(path),
            expected="a folder that `dist_trainer benchmark` wrote",
        ) from None
    except typed_json.DamagedError as error:
        raise UserError(
            f"these results are damaged: {error.problem}",
            where=str(path),
            key=error.key,
            hint="have the benchmark write them anew: it goes on from measurements.jsonl in the same folder",
        ) from None


def _flat(row: DataclassInstance, estimates: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if field.name in estimates:
            found[field.name] = value.value if value else None
            found[f"{field.name}_low"] = value.low if value else None
            found[f"{field.name}_high"] = value.high if value else None
        else:
            found[field.name] = value
    return {name: "" if value is None else value for name, value in found.items()}
