"""Whether DeepSpeed can read and write NVMe on this host: what it builds for that needs libaio.

`python -m dist_trainer.train.async_io` answers by its exit status, for `launch`, which does not import DeepSpeed.
"""

from __future__ import annotations

import sys

# Not 1, with which a Python that fails ends.
EXIT_MISSING = 3


def has_async_io() -> bool:
    """Asks DeepSpeed, which compiles and links a small program where it was not installed with it ready."""
    from deepspeed.git_version_info import installed_ops
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return bool(installed_ops.get(AsyncIOBuilder.NAME)) or bool(AsyncIOBuilder().is_compatible(verbose=False))


if __name__ == "__main__":
    sys.exit(0 if has_async_io() else EXIT_MISSING)
