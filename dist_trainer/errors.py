"""The ways in which a command fails, and the exit status of each."""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
# Only with --strict: the run succeeded, but the memory target was missed or could not be judged.
EXIT_TARGET_MISSED = 3
# Only of `launch`: a host is down or cut off, and the same run may succeed on other hosts.
EXIT_HOST_LOST = 4
EXIT_INTERRUPTED = 130

# `found` may quote a whole file that has only one line.
_MOST_CHARACTERS = 1000


class UserError(Exception):
    """Something the user asked for cannot be done as asked; the command exits with status 2.

    `problem` is one line. The other parts are optional: `where` (a file, a switch), `key` (a dotted path in
    it), `found`, `expected`, and `hint` (what to do, in the imperative).
    """

    exit_status = EXIT_USER_ERROR

    def __init__(
        self,
        problem: str,
        *,
        where: str | None = None,
        key: str | None = None,
        found: object = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.where = where
        self.key = key
        self.found = found
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        lines = [cut(self.problem)]
        place = ": ".join(part for part in (self.where, self.key) if part)
        for label, value in (
            ("where", place),
            ("found", None if self.found is None else repr(self.found)),
            ("expected", self.expected),
            ("do", self.hint),
        ):
            if value:
                lines.append(f"  {label + ':':<10}{cut(value)}")
        return "\n".join(lines)


def cut(text: str) -> str:
    """The text, shortened to what a message has room for."""
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}… ({len(text)} characters)"


class RunError(UserError):
    """The run itself went wrong (a loss that is not finite, a lost peer); the command exits with status 1."""

    exit_status = EXIT_FAILURE
