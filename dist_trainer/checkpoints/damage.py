"""What is wrong with a checkpoint's file."""

from __future__ import annotations

from pathlib import Path


class DamageError(Exception):
    """A checkpoint is damaged: `problem` says in a few words what is wrong with `file`."""

    def __init__(self, file: Path, problem: str) -> None:
        super().__init__(f"{file} {problem}")
        self.file = file
        self.problem = problem
