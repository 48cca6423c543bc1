"""What is wrong with a batch script that somebody wrote?"""

from dist_trainer.slurm.lint.rules import RULES, Finding, lint, lint_file

__all__ = ["RULES", "Finding", "lint", "lint_file"]
