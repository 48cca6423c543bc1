"""Finds the command and runs it. Without one it is `train`, which is what launchers start."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

from dist_trainer import __version__
from dist_trainer.cli.commands import require_command
from dist_trainer.disk import explained
from dist_trainer.encoding import printable, set_up_streams
from dist_trainer.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, UserError

COMMANDS = {
    "train": "train the transformer: what one rank does (the default)",
    "launch": "start the ranks with torchrun, deepspeed, mpirun or srun",
    "slurm": "submit a run to SLURM, say where it is, or check a batch script",
    "plan": "say how many bytes each rank will need",
    "doctor": "look on every host for what would keep a run from starting, or slow it down",
    "data": "make token files from text",
    "benchmark": "measure what settings are worth and what memory they take, and how far plans are off",
    "report": "judge a run's memory, and show the run as a page",
    "checkpoint": "list, inspect, verify and compare checkpoints; export to Hugging Face, and import",
    "sample": "text from a checkpoint: what a model has learnt",
    "monitor": "record the memory of any program while it runs",
}
DEFAULT_COMMAND = "train"

USAGE = """\
usage: dist_trainer [COMMAND] [SWITCHES]

commands:
{commands}

dist_trainer COMMAND --help shows a command's switches.

  torchrun --nproc_per_node=4 -m dist_trainer
  python -m dist_trainer launch --config tiny --ds zero2 --nproc-per-node 2
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status (the constants of errors.py): 0; 1 if a run failed; 2 for the user's
    mistakes; others by command.

    `argv` is by default this process's command line. With --debug unforeseen exceptions are raised.
    """
    set_up_streams()
    arguments = without_local_rank(sys.argv[1:] if argv is None else argv)
    is_debugging = "--debug" in arguments[: _end_of_own(arguments)]
    try:
        try:
            return _run(arguments)
        except UserError as error:
            if is_debugging:
                traceback.print_exc()
            print(printable(f"dist_trainer: error: {error}"), file=sys.stderr)
            return error.exit_status
        except KeyboardInterrupt:
            # The terminal shows ^C without ending its line.
            print("\ndist_trainer: interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            raise
        except Exception as error:
            if is_debugging:
                raise
            told = explained(error) if isinstance(error, OSError) else None
            if told is not None:
                print(printable(f"dist_trainer: error: {told}"), file=sys.stderr)
                return told.exit_status
            # A bug, figures too large for arithmetic (OverflowError), or a network's error.
            said = (str(error).strip().splitlines() or ["no more is known"])[0]
            print(printable(f"dist_trainer: error: {type(error).__name__}: {said}"), file=sys.stderr)
            print("  do:       run again with --debug for the traceback", file=sys.stderr)
            return EXIT_FAILURE
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output has gone (`| head`). What is still buffered must not make Python fail as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _run(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE.format(commands="\n".join(f"  {name:<11}{text}" for name, text in COMMANDS.items())), end="")
        return EXIT_OK
    if arguments[:1] == ["--version"]:
        print(__version__)
        return EXIT_OK
    command, rest = DEFAULT_COMMAND, arguments
    if arguments and not arguments[0].startswith("-"):
        command, rest = arguments[0], arguments[1:]
    require_command(command, COMMANDS)
    status: int = importlib.import_module(f"dist_trainer.cli.{command}").main(rest)
    return status


def without_local_rank(argv: list[str]) -> list[str]:
    """`argv` without the --local_rank=N that DeepSpeed's launcher puts first: the environment has LOCAL_RANK too.

    What follows `--` belongs to another program and stays.
    """
    end = _end_of_own(argv)
    own = [argument for argument in argv[:end] if not argument.startswith(("--local_rank=", "--local-rank="))]
    return own + argv[end:]


def _end_of_own(argv: list[str]) -> int:
    """How many of the words are ours: those from `--` on belong to another program."""
    return argv.index("--") if "--" in argv else len(argv)
