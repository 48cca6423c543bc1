"""Where one rank's log lines go: its own file in the run's folder, and never the root logger."""

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
    """A disk that is full is said once, by what ends the run, not by a traceback for each line of the log."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def open_rank_log(run_dir: Path, rank: int) -> logging.Handler:
    """Returns a handler that writes this rank's lines to RUN_DIR/logs/rank-N.log, added to our own logger."""
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
    """DeepSpeed logs to stdout from its import on; until there is a log file, what is below an error is dropped."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
