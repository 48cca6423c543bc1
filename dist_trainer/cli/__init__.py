"""The command line: a module for each command, with its switches. It is imported only when that command runs."""

from dist_trainer.cli.main import main

__all__ = ["main"]
