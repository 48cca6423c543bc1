"""`launch` with echo_rank in the place of dist_trainer, so that a test can run it in a process of its own.

launch_echo LAUNCH_SWITCHES... -- ARGUMENTS...
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dist_trainer.cli import launch
from dist_trainer.errors import UserError


def main(argv: list[str]) -> int:
    cut = argv.index("--")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    launch.add_arguments(parser)
    out_dir = argv[cut + 1]
    try:
        return launch.run(
            parser.parse_args(argv[:cut]),
            argv[cut + 1 :],
            run_dir=Path(out_dir),
            train_request=None,
            module="echo_rank",
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
