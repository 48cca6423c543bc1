from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.encoding import all_as_utf8, as_utf8, printable, without_commands

PRINTS = """
import os, sys
from dist_trainer.encoding import set_up_streams
set_up_streams()
set_up_streams()
text = "caf\\udce9 \\u2713 \\U0001f642 \\ud800"
print(text)
print(text, file=sys.stderr)
"""


@given(st.text(st.characters(exclude_categories=[])))
def test_what_becomes_of_a_text_is_utf8_and_what_was_is_left(text: str) -> None:
    read = as_utf8(text)
    assert read.encode().decode() == read
    try:
        text.encode()
    except UnicodeEncodeError:
        assert "\\" in read
    else:
        assert read == text


@given(st.binary())
def test_a_name_of_a_file_says_its_bytes(name: bytes) -> None:
    assert as_utf8(os.fsdecode(name)) == name.decode(errors="backslashreplace")


def test_plain_values_are_gone_through() -> None:
    value = {"a\udcff": ["b\udcff", ("c\udcff", 1, None, 2.5, True)], "d": {"e": "\ud800"}}
    found = {"a\\xff": ["b\\xff", ["c\\xff", 1, None, 2.5, True]], "d": {"e": "\\ud800"}}
    assert all_as_utf8(value) == found
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("encoding", "check", "smiley"),
    [
        ("utf-8", b"\xe2\x9c\x93", b"\xf0\x9f\x99\x82"),
        ("ascii", b"\\u2713", b"\\U0001f642"),
        ("latin-1", b"\\u2713", b"\\U0001f642"),
    ],
)
@pytest.mark.parametrize("errors", ["", ":strict", ":replace"])
def test_nothing_that_is_printed_fails_and_stdout_has_the_bytes_of_names(
    encoding: str, errors: str, check: bytes, smiley: bytes
) -> None:
    environ = {**os.environ, "PYTHONIOENCODING": encoding + errors}
    done = subprocess.run([sys.executable, "-c", PRINTS], env=environ, capture_output=True, check=True)
    assert done.stdout == b" ".join((b"caf\xe9", check, smiley, b"\\ud800\n"))
    assert done.stderr == b" ".join((b"caf\\xe9", check, smiley, b"\\ud800\n"))


def test_streams_of_somebody_elses_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from dist_trainer.encoding import set_up_streams

    theirs = io.StringIO()
    monkeypatch.setattr(sys, "stdout", theirs)
    set_up_streams()
    assert sys.stdout is theirs


def test_what_a_terminal_would_obey_is_shown_and_lines_stay_lines() -> None:
    assert printable("\x1b[2J\x9b\x00\x7f caf\udce9\n\tünï") == "\\x1b[2J\\x9b\\x00\\x7f caf\\xe9\n\tünï"
    assert printable("50%\r100%\r\n") == "50%\n100%\n"
    assert printable("abc\u202edcba\u2066") == "abc\\u202edcba\\u2066"


def test_what_goes_through_has_the_bytes_of_names_but_none_that_command() -> None:
    assert without_commands("caf\udce9 \udcc2\udc9b31m \ud800") == "caf\udce9 \udcc2\\x9b31m \\ud800"
