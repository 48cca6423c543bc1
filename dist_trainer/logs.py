"""Where one rank's log lines go: its own file in the run's folder, and never the root logger."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOGGER_NAME = "dist_trainer"


def rank_log_path(run_dir: Path, rank: int) -> Path:
    return run_dir / "logs" / f"rank-{rank}.log"


def open_rank_log(run_dir: Path, rank: int) -> logging.Handler:
    """Returns a handler that writes this rank's lines to RUN_DIR/logs/rank-N.log, added to our own logger."""
    path = rank_log_path(run_dir, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger(LOGGER_NAME)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    return handler


@contextmanager
def quiet_deepspeed() -> Iterator[None]:
    """DeepSpeed logs to stdout from its import on; until there is a log file, what is below an error is dropped."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
