"""The command line: which command, its switches, its exit status. A command's module is imported when it runs."""

from dist_trainer.cli.main import main

__all__ = ["main"]
