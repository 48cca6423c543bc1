"""The log of one rank: a file of its own in the run's folder. The root logger is never touched."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_trainer.disk import writing

LOGGER_NAME = "dist_trainer"


def rank_log_path(run_dir: Path, rank: int) -> Path:
    return run_dir / "logs" / f"rank-{rank}.log"


class _QuietFileHandler(logging.FileHandler):
    """A full disk is reported once, by the error that ends the run, and not by a traceback for each log line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def open_rank_log(run_dir: Path, rank: int) -> logging.Handler:
    """Adds a handler for RUN_DIR/logs/rank-N.log to our own logger, and returns it."""
    path = rank_log_path(run_dir, rank)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _QuietFileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger(LOGGER_NAME)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    return handler


@contextmanager
def quiet_deepspeed() -> Iterator[None]:
    """DeepSpeed logs to stdout from its import on; in this block, while there is no log file yet, only errors pass."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
