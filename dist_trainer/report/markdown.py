"""Text in Markdown: what is quoted from files, hosts and programs shows as it is, and makes no markup of its own."""

from __future__ import annotations

import re

from markupsafe import Markup

# What has a meaning anywhere in a line, for GitHub too; an underscore within a word has none.
_INLINE = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
# What begins a heading, a list, a quotation or a rule.
_BLOCK = re.compile(r"(?:[-+]|#{1,6}|\d{1,9}[.)])(?=\s|$)|>|[-=]+$")


def quoted(text: str) -> Markup:
    """The text in one line, for a paragraph, an item or a cell."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    line = _INLINE.sub(r"\\\g<0>", line)
    found = _BLOCK.match(line)
    if found is not None:
        line = f"{line[: found.end() - 1]}\\{line[found.end() - 1 :]}"
    return Markup(line)


def fenced(text: str, language: str = "") -> Markup:
    """The text in its lines, in a block with a fence that is in none of them."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def finalize(value: object) -> Markup:
    """For a template: whatever it prints is quoted, but for what is Markdown already."""
    return value if isinstance(value, Markup) else quoted(str(value))
