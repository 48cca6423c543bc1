"""Mutated inputs for every parser: each ends well or with one UserError, within seconds, and its file is as it was.

python tests/fuzz/fuzzing.py --cases 10000                          # every parser
python tests/fuzz/fuzzing.py --parser set --seed 3 --case 17        # one case again, with its traceback
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from mutations import mutate
from parsers import PARSERS, Parser

from dist_trainer.errors import EXIT_USER_ERROR, UserError

# Of this process's own time, so that a busy machine is no hang.
LIMIT_S = 5
MEMORY_BYTES = 24 * 2**30
MAX_MESSAGE_CHARACTERS = 10_000


class Hang(BaseException):
    pass


@dataclass
class Outcome:
    """How the cases of one parser went. `failures` are (number, what was wrong), `slowest` is (seconds, number)."""

    num_accepted: int = 0
    num_refused: int = 0
    slowest: tuple[float, int] = (0.0, 0)
    failures: list[tuple[int, str]] = field(default_factory=list)


@contextmanager
def limited() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def fuzz(parser: Parser, *, seed: int, cases: range, max_failures: int = 5) -> Outcome:
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name:
        path, seeds, use = parser.open(Path(name))
        for number in cases:
            data = mutate(random.Random(f"{seed}:{parser.name}:{number}"), seeds, parser.form)
            path.write_bytes(data)
            before = _listing(Path(name))
            begun_s = time.process_time()
            problem = _problem(parser, use, outcome)
            outcome.slowest = max(outcome.slowest, (time.process_time() - begun_s, number))
            if problem is None and (path.read_bytes() != data or _listing(Path(name)) != before):
                problem = "a file was changed"
            if problem is not None:
                outcome.failures.append((number, problem))
                if len(outcome.failures) >= max_failures:
                    break
    return outcome


def _listing(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "lock" not in path.parts)


def _problem(parser: Parser, use: object, outcome: Outcome) -> str | None:
    assert callable(use)
    try:
        with limited():
            use()
    except UserError as error:
        outcome.num_refused += 1
        message = str(error)
        if not parser.is_fatal:
            return f"refused: {message}"
        if error.exit_status != EXIT_USER_ERROR or not error.problem.strip():
            return f"no status 2, or no message: {error!r}"
        if len(message) > MAX_MESSAGE_CHARACTERS:
            return f"a message of {len(message)} characters"
        return None
    except Hang:
        return "hang:\n" + traceback.format_exc()[-3000:]
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - also what Rust panics with
        return traceback.format_exc()[-3000:]
    outcome.num_accepted += 1
    return None


def main() -> int:
    switches = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    switches.add_argument("--cases", type=int, default=10_000, help="cases a parser (default: %(default)s)")
    switches.add_argument("--seed", type=int, default=0)
    switches.add_argument("--parser", action="append", choices=[parser.name for parser in PARSERS])
    switches.add_argument("--case", type=int, help="this one alone")
    args = switches.parse_args()
    # A bomb is a failure here, and not the machine's end.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    cases = range(args.cases) if args.case is None else range(args.case, args.case + 1)
    has_failed = False
    for parser in PARSERS:
        if args.parser and parser.name not in args.parser:
            continue
        begun_s = time.monotonic()
        outcome = fuzz(parser, seed=args.seed, cases=cases)
        has_failed = has_failed or bool(outcome.failures)
        print(
            f"{parser.name:<40}{outcome.num_accepted:>7} accepted {outcome.num_refused:>7} refused "
            f"{len(outcome.failures):>3} failed; {time.monotonic() - begun_s:.0f} s; "
            f"slowest {outcome.slowest[0]:.2f} s, case {outcome.slowest[1]}",
            flush=True,
        )
        for number, problem in outcome.failures:
            print(f"  case {number}:\n    " + problem.strip().replace("\n", "\n    "), flush=True)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
