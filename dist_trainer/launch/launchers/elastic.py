"""torchrun, but with the exit status of the rank that failed first instead of always 1, and without a traceback.

Run as `python -m dist_trainer.launch.launchers.elastic` with torchrun's arguments.
"""

from __future__ import annotations

import gc
import logging
import signal
import sys

from dist_trainer.launch.plan import GUARD_MODULE
from dist_trainer.launch.processes import signal_name

# torchrun's defaults, and those that tell ranks to save and end. The agent passes on the one that it gets.
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")


def main(argv: list[str]) -> int:
    """Returns 0, the exit status of the rank that failed first, or 128 + the number of the signal that ended it."""
    # During the imports the collector frees nothing and takes a tenth of the time.
    gc.disable()
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    gc.freeze()
    gc.enable()
    # The rank itself says what happened, or else the line below.
    logging.disable(logging.CRITICAL)
    args = parse_args(argv)  # type: ignore[no-untyped-call]
    # Newer torch takes a list of signals to handle. Signals that are ignored (nohup, a shell's `&`) stay ignored.
    args.signals_to_handle = ",".join(
        name for name in _SIGNALS if signal.getsignal(signal.Signals[name]) is not signal.SIG_IGN
    )
    try:
        run(args)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            if GUARD_MODULE not in argv:
                # With guards, `launch` reports what became of the guard and its rank.
                print(f"rank {rank} was killed by {signal_name(-failure.exitcode)}", file=sys.stderr)
            return 128 - failure.exitcode
        return failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
