"""Quoting for Markdown: text from files, hosts and programs shows literally and is never taken as markup."""

from __future__ import annotations

import re

from markupsafe import Markup

# Characters with a meaning anywhere in a line (GitHub's included); an underscore within a word has none.
_INLINE = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
# What begins a heading, a list item, a block quote or a rule.
_BLOCK = re.compile(r"(?:[-+]|#{1,6}|\d{1,9}[.)])(?=\s|$)|>|[-=]+$")


def quoted(text: str) -> Markup:
    """The text on one line, for a paragraph, a list item or a table cell."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    line = _INLINE.sub(r"\\\g<0>", line)
    found = _BLOCK.match(line)
    if found is not None:
        line = f"{line[: found.end() - 1]}\\{line[found.end() - 1 :]}"
    return Markup(line)


def fenced(text: str, language: str = "") -> Markup:
    """The text with its line breaks, in a code block whose fence does not occur in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def finalize(value: object) -> Markup:
    """Jinja's `finalize`: quotes whatever a template prints, unless it is Markdown already."""
    return value if isinstance(value, Markup) else quoted(str(value))
