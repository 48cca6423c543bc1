"""argparse as this program uses it: no abbreviations, and mistakes are UserErrors."""

from __future__ import annotations

import argparse
import difflib
import math
from typing import NoReturn

from dist_trainer.errors import UserError
from dist_trainer.units import whole_number


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and exit, so that one rank can report it for all."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"dist_trainer {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(message, where="command line", hint=f"see {self.prog} --help")

    def option_strings(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]

    def parse(self, argv: list[str], *, also_known: list[str] | None = None) -> argparse.Namespace:
        """Raises UserError for an unknown switch, with the most similar one as a hint: its own, or of `also_known`."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            known = [*self.option_strings(), *(also_known or [])]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            raise UserError("unknown switch", where="command line", found=unknown[0], hint=hint)
        return args


def positive(text: str) -> int:
    number = whole_number(text)
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def not_negative(text: str) -> int:
    number = whole_number(text)
    if number is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return number


def positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
