from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from dist_trainer.streams import is_terminal

PRINTER = """
import os, sys
from pathlib import Path
from dist_trainer.streams import outlive_readers
outlive_readers()
outlive_readers()
print("first", flush=True)
sys.stdin.readline()
stream = getattr(sys, sys.argv[1])
for number in range(1000):
    print(number, file=stream, flush=True)
print("x" * 1_000_000, file=stream)
os.write(1, b"")
Path(sys.argv[2]).write_text("at the end")
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_program_goes_on_when_nobody_reads_what_it_prints(stream: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PRINTER, stream, str(tmp_path / "ended")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as printer:
        assert printer.stdin and printer.stdout and printer.stderr
        assert printer.stdout.readline() == "first\n"
        getattr(printer, stream).close()
        printer.stdin.write("go on\n")
        printer.stdin.flush()
        assert printer.wait(60) == 0
    assert (tmp_path / "ended").read_text() == "at the end"


def test_what_is_printed_arrives_as_before() -> None:
    code = (
        "from dist_trainer.streams import outlive_readers; outlive_readers()\n"
        "import sys; print('ä'); print(2, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code], capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert (done.stdout, done.stderr) == ("ä\n", "2\n")


def test_a_terminal_has_columns_which_that_of_open_mpis_ranks_has_not() -> None:
    ours, theirs = pty.openpty()
    try:
        assert not is_terminal(theirs)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        assert is_terminal(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_file_and_what_is_closed_are_no_terminals(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        descriptor = file.fileno()
        assert not is_terminal(descriptor)
    assert not is_terminal(descriptor)
