"""Text that UTF-8, a terminal or a pipe cannot hold. File names are bytes: Python represents those that are not UTF-8
as lone surrogates, which raise UnicodeEncodeError wherever they are written.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from typing import Any

# All C0 and C1 control characters except tab and newline, C1 also as raw bytes, and bidirectional controls.
_COMMANDS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udc9f\udd00-\udfff]"
)
_ESCAPED = "dist_trainer.escaped"
_AS_BYTES = "dist_trainer.as_bytes"


def set_up_streams() -> None:
    """Makes printing never fail for its characters, whatever the locale and PYTHONIOENCODING are.

    Characters that the encoding lacks are escaped; but stdout prints the bytes of a file name unchanged, so that a
    printed path can be used. A closed standard stream is opened on /dev/null, before another file or socket gets its
    descriptor and receives what is printed.
    """
    _open_what_is_closed()
    for stream, errors in ((sys.stdout, _AS_BYTES), (sys.stderr, _ESCAPED)):
        # Only once: a forked process may have put another kind of file in place, which refuses to be reconfigured.
        if isinstance(stream, io.TextIOWrapper) and stream.errors != errors:
            stream.reconfigure(errors=errors)


def print_script(text: str) -> None:
    """Prints text for a shell to read: file names keep their bytes, whatever a terminal could show."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode(errors="surrogateescape"))


def as_utf8(text: str) -> str:
    r"""The text with \xNN for bytes of a name that are not UTF-8, for other programs to read."""
    return text.encode("utf-8", _ESCAPED).decode("utf-8")


def printable(text: str) -> str:
    """The same, with terminal control sequences escaped too: see `without_commands`."""
    return without_commands(as_utf8(text))


def without_commands(text: str) -> str:
    """The text with control characters escaped except tabs and line ends; bytes of names stay as they are.

    A carriage return becomes a line end, so that no line overwrites another.
    """
    return _COMMANDS.sub(_shown, text.replace("\r\n", "\n").replace("\r", "\n"))


def all_as_utf8(value: Any) -> Any:
    """`as_utf8` of every string in a JSON-like value of mappings, lists and scalars."""
    if isinstance(value, str):
        return as_utf8(value)
    if isinstance(value, dict):
        return {all_as_utf8(key): all_as_utf8(one) for key, one in value.items()}
    return [all_as_utf8(one) for one in value] if isinstance(value, list | tuple) else value


def _open_what_is_closed() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # open() returns the lowest free descriptor, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _shown(found: re.Match[str]) -> str:
    return as_utf8(found[0]) if "\ud800" <= found[0] <= "\udfff" else found[0].encode("unicode_escape").decode()


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = ord(error.object[error.start])
    if 0xDC80 <= character <= 0xDCFF:
        return f"\\x{character - 0xDC00:02x}", error.start + 1
    return ascii(error.object[error.start])[1:-1], error.start + 1


def _as_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = ord(error.object[error.start])
    if 0xDC80 <= character <= 0xDCFF:
        return bytes([character - 0xDC00]), error.start + 1
    return _escape(error)


codecs.register_error(_ESCAPED, _escape)
codecs.register_error(_AS_BYTES, _as_bytes)
