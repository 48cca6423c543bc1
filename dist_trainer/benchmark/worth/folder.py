"""A folder of results: the cells as files, what was measured of them, and the settings of the whole.

BENCHMARK_DIR/settings.json                       what all measurements have in common
BENCHMARK_DIR/cells/NAME/ds_config.json, run.yaml a cell, complete
BENCHMARK_DIR/measurements.jsonl                  a line a measurement, whole or not there
BENCHMARK_DIR/logs/NAME-ROUND.log                 what a run that failed printed

telling.py adds the results that follow from the measurements.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import yaml

from dist_trainer import typed_json
from dist_trainer.benchmark.worth.cells import Cell
from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.disk import write_text, writing
from dist_trainer.errors import UserError
from dist_trainer.typed_json import DamagedError

SETTINGS_FILE, MEASUREMENTS_FILE = "settings.json", "measurements.jsonl"
DS_FILE, RUN_FILE = "ds_config.json", "run.yaml"


@dataclass(frozen=True)
class Settings:
    """What all measurements of a folder have in common. Of a run's `num_steps` optimizer steps the first `num_warm_up`
    are left out of its figures. `num_ranks` is of cells that have no number of their own; `sequence_length` is in
    tokens; `hardware` is "cpu", or the name of the GPUs; `code` a digest of the package's files. `sweep` and
    `deepspeed` are of a sweep alone: what is varied, as `--sweep` takes it, and the JSON of all its cells, by name and
    digest.
    """

    model_size: str
    num_ranks: int
    num_steps: int
    num_warm_up: int
    sequence_length: int
    launcher: str
    hardware: str
    code: str
    sweep: str = ""
    deepspeed: str = ""


@dataclass(frozen=True)
class Folder:
    path: Path

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def cell(self, name: str) -> Path:
        return self.path / "cells" / name

    def begin(self, settings: Settings, cells: Iterable[Cell]) -> None:
        """Writes the settings, or checks that those of a folder that was begun before are the same; writes the cells.

        Raises UserError if they are not the same, or cannot be read.
        """
        path = self.path / SETTINGS_FILE
        if path.exists():
            self._check_same(settings)
        else:
            write_text(path, json.dumps(asdict(settings), indent=2) + "\n")
        for cell in cells:
            folder = self.cell(cell.name)
            write_text(folder / DS_FILE, json.dumps(cell.deepspeed, indent=2) + "\n")
            write_text(folder / RUN_FILE, yaml.safe_dump(dict(cell.run), sort_keys=False, allow_unicode=True))

    def settings(self) -> Settings:
        """Raises UserError where the folder has none that can be read."""
        path = self.path / SETTINGS_FILE
        try:
            return typed_json.read(path, Settings)
        except (OSError, DamagedError) as error:
            raise UserError("not a folder of benchmark results", where=str(path), found=str(error)) from None

    def measurements(self) -> list[Measurement]:
        """All that were written whole: a line that a crash cut off was not."""
        path = self.path / MEASUREMENTS_FILE
        found = []
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                found.append(typed_json.parse(line, Measurement))
            except DamagedError:
                continue
        return found

    def add(self, measurement: Measurement) -> None:
        path = self.path / MEASUREMENTS_FILE
        line = json.dumps(asdict(measurement)).encode() + b"\n"
        with writing(path, len(line)), path.open("a+b") as file:
            file.write(line if _ends_in_a_line(file) else b"\n" + line)

    def _check_same(self, settings: Settings) -> None:
        before, now = asdict(self.settings()), asdict(settings)
        differing = [name for name in now if now[name] != before[name]]
        if differing:
            name = differing[0]
            raise UserError(
                "the folder has measurements of something else",
                where=str(self.path / SETTINGS_FILE),
                key=name,
                found=now[name],
                expected=str(before[name]),
                hint="name another folder with --results, or say the switches of the first time",
            )


def free_folder(parent: Path, name: str, settings: Settings) -> Path:
    """`parent`/`name`, or if that has other settings `name`-2, `name`-3, ...: the first that is new, or has the same.

    Raises UserError if none is free.
    """
    for number in range(1, 1000):
        path = parent / (name if number == 1 else f"{name}-{number}")
        if not (path / SETTINGS_FILE).exists() or Folder(path).settings() == settings:
            return path
    raise UserError("no name is free for the results", where=str(parent), found=name, hint="name one with --results")


def _ends_in_a_line(file: BinaryIO) -> bool:
    """False after a line that a full disk or a kill cut off."""
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(max(0, size_bytes - 1))
    return file.read(1) in (b"", b"\n")
