"""Keeps keys, tokens and passwords out of records that others may read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

REDACTED = "(not recorded)"

# Matched at the end of a name: WANDB_API_KEY, PGPASSWORD, comet.api_key, --hf-token; not num_tokens or KEYBOARD.
_SECRET = r"(?:(?:^|[\W_])key|apikey|token|secret|passwd|password|passphrase|credentials?)"
_SECRET_NAME = re.compile(rf"(?i).*?{_SECRET}")
_IN_ADDRESS = re.compile(r"(://[^/@\s:]*):[^/@\s]+@")
# Code hosts take a token in place of the user name; ssh://git@host is not matched.
_AS_USER = re.compile(r"(?i)(https?://)[^/@\s:]+@")
_IN_QUERY = re.compile(
    r"(?i)([?&](?:(?:[\w.-]*[._-])?key|[\w.-]*(?:apikey|token|secret|passwd|password|signature))=)[^&#\s]+"
)
# `{"api_key": "x"}` or `{api_key: x}`: a block of JSON or YAML, as --set takes one.
_IN_BLOCK = re.compile(
    rf"""(?i)((?:^|[{{,]\s*)["']?[\w.-]*?{_SECRET}["']?\s*:\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[^\s,}}\]][^,}}\]]*)"""
)


def redacted_env(env: Mapping[str, str], secret_names: Iterable[str] = ()) -> dict[str, str]:
    """The variables, without the values of `secret_names` and of variables whose names look secret."""
    hidden = set(secret_names)
    return {
        name: REDACTED if name in hidden or _SECRET_NAME.fullmatch(name) else redacted_text(value)
        for name, value in env.items()
    }


def redacted_argv(argv: Sequence[str]) -> list[str]:
    """NAME=VALUE, --name=VALUE and --name VALUE without the value, if the name looks secret."""
    words: list[str] = []
    is_value = False
    for word in argv:
        name, equals, _ = word.partition("=")
        is_named = _SECRET_NAME.fullmatch(name) is not None
        if is_value and not word.startswith("-"):
            words.append(REDACTED)
        elif equals and is_named:
            words.append(f"{name}={REDACTED}")
        else:
            words.append(redacted_text(word))
        is_value = word.startswith("--") and not equals and is_named
    return words


def redacted_config(value: Any) -> Any:
    """A configuration (a JSON value) without the strings under names that look secret."""
    if isinstance(value, Mapping):
        return {
            name: REDACTED
            if isinstance(inner, str) and inner and _SECRET_NAME.fullmatch(name)
            else redacted_config(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [redacted_config(inner) for inner in value]
    return value


def redacted_text(text: str) -> str:
    """The text without the secrets in addresses (user:password@) and in blocks of JSON or YAML."""
    text = _IN_ADDRESS.sub(rf"\1:{REDACTED}@", text)
    text = _AS_USER.sub(rf"\1{REDACTED}@", text)
    text = _IN_QUERY.sub(rf"\1{REDACTED}", text)
    return _IN_BLOCK.sub(rf'\1"{REDACTED}"', text)
