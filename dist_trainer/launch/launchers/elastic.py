"""torchrun, with the exit status of the rank that failed first instead of always 1, and without its traceback.

Run as `python -m dist_trainer.launch.launchers.elastic` with torchrun's own arguments.
"""

from __future__ import annotations

import gc
import logging
import signal
import sys

from dist_trainer.launch.plan import GUARD_MODULE
from dist_trainer.launch.processes import signal_name

# Those of torchrun, where nobody says others.
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")


def main(argv: list[str]) -> int:
    """The status to exit with: 0, the first failed rank's own, or 128 + the number of the signal that ended it."""
    # Finds nothing in the imports, and takes a tenth of their time.
    gc.disable()
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    gc.freeze()
    gc.enable()
    # What happened is said by the rank itself or, below, in one line.
    logging.disable(logging.CRITICAL)
    args = parse_args(argv)  # type: ignore[no-untyped-call]
    # Newer torch says which signals end a run: what nohup and a shell's `&` have ignored stays so.
    args.signals_to_handle = ",".join(
        name for name in _SIGNALS if signal.getsignal(signal.Signals[name]) is not signal.SIG_IGN
    )
    try:
        run(args)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            if GUARD_MODULE not in argv:
                # Else `launch` says what became of the guard, and its rank.
                print(f"rank {rank} was killed by {signal_name(-failure.exitcode)}", file=sys.stderr)
            return 128 - failure.exitcode
        return failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
