"""What looks like a key, a token or a password is not written to a record that others may read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

REDACTED = "(not recorded)"

# The end of a name says what it is: WANDB_API_KEY, PGPASSWORD, comet.api_key, --hf-token; not num_tokens, KEYBOARD.
_SECRET_NAME = re.compile(r"(?i).*?(?:(?:^|[\W_])key|apikey|token|secret|passwd|password|passphrase|credentials?)")
_IN_ADDRESS = re.compile(r"(://[^/@\s:]*):[^/@\s]+@")
_IN_QUERY = re.compile(
    r"(?i)([?&](?:(?:[\w.-]*[._-])?key|[\w.-]*(?:apikey|token|secret|passwd|password|signature))=)[^&#\s]+"
)


def redacted_env(env: Mapping[str, str], secret_names: Iterable[str] = ()) -> dict[str, str]:
    """The variables without the values of those named, and of those whose names say that they are secret."""
    hidden = set(secret_names)
    return {
        name: REDACTED if name in hidden or _SECRET_NAME.fullmatch(name) else _without_password(value)
        for name, value in env.items()
    }


def redacted_argv(argv: Sequence[str]) -> list[str]:
    """NAME=VALUE, --name=VALUE and --name VALUE without the value, where the name says that it is secret."""
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
            words.append(_without_password(word))
        is_value = word.startswith("--") and not equals and is_named
    return words


def _without_password(text: str) -> str:
    return _IN_QUERY.sub(rf"\1{REDACTED}", _IN_ADDRESS.sub(rf"\1:{REDACTED}@", text))
