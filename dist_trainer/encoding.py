"""Text that UTF-8, a terminal or a pipe cannot hold. Names of files are bytes: what of them is no text, Python gives as
lone surrogates, which fail wherever they are written.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from typing import Any

# All of C0 and C1 but tab and newline, C1 as bytes too, and what turns the direction of writing.
_COMMANDS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udc9f\udd00-\udfff]"
)
_ESCAPED = "dist_trainer.escaped"
_AS_BYTES = "dist_trainer.as_bytes"


def set_up_streams() -> None:
    """Nothing that is printed fails for its characters, whatever the locale and PYTHONIOENCODING say.

    What the encoding lacks is escaped; but stdout has the bytes of a file's name as they are, so that a path that was
    printed can be used. A standard stream that is closed becomes /dev/null, before a file or a socket
    takes its number and gets what is printed.
    """
    _open_what_is_closed()
    for stream, errors in ((sys.stdout, _AS_BYTES), (sys.stderr, _ESCAPED)):
        # Once: the streams of a fork may have come to stand for another kind of file, and refuse to be changed.
        if isinstance(stream, io.TextIOWrapper) and stream.errors != errors:
            stream.reconfigure(errors=errors)


def print_script(text: str) -> None:
    """Prints what a shell will read: the bytes of names are those of the files, whatever a terminal could show."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode(errors="surrogateescape"))


def as_utf8(text: str) -> str:
    r"""The text with \xNN for what of a name is no UTF-8: for what other programs read."""
    return text.encode("utf-8", _ESCAPED).decode("utf-8")


def printable(text: str) -> str:
    """The same with what a terminal would obey escaped too: see `without_commands`."""
    return without_commands(as_utf8(text))


def without_commands(text: str) -> str:
    """The text with control characters escaped, but for tabs and the ends of lines; bytes of names stay as they are.

    A carriage return, which would have one line written over another, ends a line.
    """
    return _COMMANDS.sub(_shown, text.replace("\r\n", "\n").replace("\r", "\n"))


def all_as_utf8(value: Any) -> Any:
    """The same of every text in plain values: mappings, lists, and what JSON has beside them."""
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
            # It gets the lowest number that is free.
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
