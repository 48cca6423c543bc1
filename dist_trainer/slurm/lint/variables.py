"""The values of a script's variables, as far as its text tells, and their expansion in text."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Variables that differ between tasks; in the batch shell they have the first task's values.
PER_TASK = ("SLURM_PROCID", "SLURM_NODEID", "SLURM_LOCALID")
# A placeholder for the output of a command substitution.
SUBSTITUTED = "$_"
# A private-use character in place of the dollar sign of a PER_TASK variable that the script's own shell expands.
_EARLY = "\ue000"
_EARLY_NAME = re.compile(_EARLY + r"\{?(\w+)")
_REFERENCE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:\[[@*]\])?(?::?[-=]([^{}]*))?\})")
_SUBSTITUTION = re.compile(r"\$\(\([^()]*\)\)|\$\([^()]*\)|`[^`]*`")
_PUNCTUATION = re.compile(r"[;&|()<>\n]")
_QUOTES = re.compile(r"['\"\\]")
_HEREDOC_ESCAPE = re.compile(r"\\([$`\\])|" + _REFERENCE.pattern)
# A line that would become longer by expansion is left unexpanded.
_MOST_CHARACTERS = 2**14


def without_substitutions(text: str) -> str:
    """The text with every $(...) and `...`, nested ones too, replaced by SUBSTITUTED."""
    while True:
        shorter = _SUBSTITUTION.sub(SUBSTITUTED, text)
        if shorter == text:
            return text
        text = shorter


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Expands variables in the text, marked up for `early_names` and `plain`; quotes stay as they are.

    Variables in single quotes are expanded as well, because the shell that reads the text next expands them.
    """
    parts: list[str] = []
    quote, index, length = "", 0, 0
    while index < len(text):
        character = text[index]
        part = character
        if character == "\\" and quote != "'":
            part = text[index : index + 2]
            index += 2
        elif character == "$":
            match = _REFERENCE.match(text, index)
            if match is None:
                index += 1
            else:
                part = _value(match, variables, quote)
                index = match.end()
        else:
            if character == quote:
                quote = ""
            elif not quote and character in "'\"":
                quote = character
            index += 1
        parts.append(part)
        length += len(part)
        if length > _MOST_CHARACTERS:
            return text
    return "".join(parts)


def early_names(text: str) -> tuple[str, ...]:
    """The PER_TASK variables in this expanded text that the script's own shell expands."""
    return tuple(dict.fromkeys(_EARLY_NAME.findall(text)))


def plain(text: str) -> str:
    """Expanded text as a person would write it, without our markup."""
    return text.replace(_EARLY, "$")


def expand_heredoc_line(line: str, variables: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """A line of a heredoc with an unquoted delimiter, as the shell passes it on; and SLURM variables expanded in it."""
    early: list[str] = []
    is_directive = line.startswith("#")
    room = _MOST_CHARACTERS

    def passed_on(match: re.Match[str]) -> str:
        nonlocal room
        escaped, *names, default = match.groups()
        if escaped is not None:
            return str(escaped)
        name = next(name for name in names if name)
        if name in variables and room > 0:
            room -= len(variables[name])
            return plain(variables[name])
        if name.startswith("SLURM_") and default is None and not is_directive:
            early.append(name)
            return SUBSTITUTED
        return SUBSTITUTED if is_directive else match.group()

    # A substitution after a backslash is left for the inner script.
    outer = re.sub(r"(?<!\\)(?:" + _SUBSTITUTION.pattern + ")", SUBSTITUTED, line)
    return _HEREDOC_ESCAPE.sub(passed_on, outer), tuple(early)


def _value(match: re.Match[str], variables: Mapping[str, str], quote: str) -> str:
    name, default = match.group(1) or match.group(2), match.group(3)
    value = variables.get(name)
    if value is None and default is not None and not name.startswith("SLURM_"):
        value = default
    if value is not None and value != SUBSTITUTED:
        bare = _QUOTES.sub("", value)
        return bare if quote else _PUNCTUATION.sub(" ", bare)
    is_early = name in PER_TASK and quote != "'"
    return _EARLY + match.group()[1:] if is_early else match.group()
