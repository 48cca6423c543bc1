from __future__ import annotations

import pytest

from dist_trainer.data.progress import byte_progress


def test_the_bar_is_on_stderr_and_counts_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    with byte_progress("reading", 2048, enabled=True) as advance:
        advance(1024)
        advance(1024)
    output = capsys.readouterr()
    assert output.out == ""
    assert "reading" in output.err
    assert "2.0/2.0 kB" in output.err


def test_nothing_is_shown_when_it_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    with byte_progress("reading", 2048, enabled=False) as advance:
        advance(2048)
    assert capsys.readouterr() == ("", "")


def test_a_bar_says_what_goes_on_when_all_bytes_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    with byte_progress("reading", 2048, enabled=True, afterwards="learning the vocabulary") as advance:
        advance(2048)
    assert "learning the vocabulary" in capsys.readouterr().err
