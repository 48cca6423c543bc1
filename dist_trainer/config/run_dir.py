"""The folder of a run: the user's, or the next free one under runs/."""

from __future__ import annotations

import itertools
from pathlib import Path

from dist_trainer.disk import cannot_write
from dist_trainer.errors import UserError

RUNS_DIR = Path("runs")


def next_run_dir(config_name: str, ds_name: str, runs_dir: Path = RUNS_DIR) -> Path:
    """The first of runs/<config>-<ds>-001, -002, ... that does not exist. Makes nothing."""
    stem = f"{Path(config_name).stem}-{Path(ds_name).stem}"
    candidates = (runs_dir / f"{stem}-{number:03d}" for number in itertools.count(1))
    return next(path for path in candidates if not path.exists())


def create_next_run_dir(config_name: str, ds_name: str, runs_dir: Path = RUNS_DIR) -> Path:
    """Makes the folder that `next_run_dir` names. Two launches at the same moment get different folders."""
    while True:
        path = next_run_dir(config_name, ds_name, runs_dir)
        _make(path.parent)
        try:
            path.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot_make(path, error) from error
        return path


def create_run_dir(path: Path) -> None:
    """Makes the folder that the user named, if it does not exist. Raises UserError if that fails."""
    _make(path)


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_make(path, error) from error


def _cannot_make(path: Path, error: OSError) -> UserError:
    return cannot_write("The run's folder cannot be made", error, path)
