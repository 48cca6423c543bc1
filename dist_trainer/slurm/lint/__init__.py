"""Finds mistakes in batch scripts that people wrote."""

from dist_trainer.slurm.lint.rules import RULES, Finding, lint, lint_file

__all__ = ["RULES", "Finding", "lint", "lint_file"]
