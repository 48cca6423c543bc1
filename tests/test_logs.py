from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_trainer.logs import LOGGER_NAME, open_rank_log, rank_log_path


@pytest.fixture(autouse=True)
def own_logger() -> Iterator[logging.Logger]:
    """Our logger, left after the test as it was before."""
    logger = logging.getLogger(LOGGER_NAME)
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield logger
    for handler in logger.handlers:
        if handler not in handlers:
            handler.close()
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


def test_each_rank_has_a_file_of_its_own(tmp_path: Path) -> None:
    assert rank_log_path(tmp_path, 0) == tmp_path / "logs" / "rank-0.log"
    assert rank_log_path(tmp_path, 12) == tmp_path / "logs" / "rank-12.log"


def test_lines_of_the_package_go_to_the_file_with_level_and_name(tmp_path: Path) -> None:
    open_rank_log(tmp_path, 3).flush()
    logging.getLogger(f"{LOGGER_NAME}.train").info("naïve %d", 7)
    logging.getLogger(LOGGER_NAME).debug("too fine")
    (line,) = rank_log_path(tmp_path, 3).read_text(encoding="utf-8").splitlines()
    assert line.endswith(f"INFO {LOGGER_NAME}.train: naïve 7")


def test_a_resumed_run_appends(tmp_path: Path, own_logger: logging.Logger) -> None:
    for text in ("first", "second"):
        handler = open_rank_log(tmp_path, 0)
        own_logger.info(text)
        own_logger.removeHandler(handler)
        handler.close()
    lines = rank_log_path(tmp_path, 0).read_text(encoding="utf-8").splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["first", "second"]


def test_the_root_logger_is_left_alone_and_gets_nothing(tmp_path: Path, own_logger: logging.Logger) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    received: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            received.append(record.getMessage())

    open_rank_log(tmp_path, 0)
    assert (root.handlers, root.level) == before
    ear = Ear()
    root.addHandler(ear)
    try:
        own_logger.error("only for the file")
    finally:
        root.removeHandler(ear)
    assert received == []
    assert "only for the file" in rank_log_path(tmp_path, 0).read_text(encoding="utf-8")


def test_a_name_that_is_no_utf8_is_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_rank_log(tmp_path, 0)
    logging.getLogger(LOGGER_NAME).error("a\udcff/b")
    assert rank_log_path(tmp_path, 0).read_text(encoding="utf-8").endswith("a\\udcff/b\n")
    assert capfd.readouterr().err == ""
